"""From visible surfaces to a photograph: textures, light, occlusion, exposure, lens and sensor."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8
from scipy.ndimage import uniform_filter

from polyptych.datasets._rooms.arrangement import Room
from polyptych.datasets._rooms.casting import Camera, surface_normals
from polyptych.datasets._rooms.lighting import Reach
from polyptych.datasets._rooms.materials import albedo
from polyptych.datasets._rooms.solids import SHELL
from polyptych.datasets._rooms.view import View

_AROUND = tuple((dy, dx) for dy in range(3) for dx in range(3) if (dy, dx) != (1, 1))


def photograph(room: Room, view: View, seed: int) -> UInt8[np.ndarray, "3 h w"]:
    """Render the photograph. ``seed`` determines the sensor noise."""
    height, width = view.camera.size
    edge = _edges(view)
    fine = _FineSamples(view, edge)
    u, v = np.broadcast_arrays(view.u, view.v[:, None])
    extra = fine.slopes()
    normals, _ = surface_normals(room.solids, room.extent, view.camera, fine.ids, *extra, fine.w)
    occlusion = ambient_occlusion(view.w).ravel()
    opaque = room.solids.only(~room.glass()[SHELL:])
    reaches = [Reach(light, opaque) for light in room.lights]
    light = _radiance(room, view.camera, reaches, np.concatenate([view.ids.ravel(), fine.ids]),
                      np.concatenate([u.ravel(), extra[0]]), np.concatenate([v.ravel(), extra[1]]),
                      np.concatenate([view.w.ravel(), fine.w]),
                      np.concatenate([view.normals.reshape(3, -1), normals], 1),
                      np.concatenate([occlusion, occlusion[fine.nearest]]))
    # Metered like a camera: by the logarithmic mean, so that a window or a lamp does not darken the rest.
    luminance = light[:, :height * width].mean(0)
    exposure = room.atmosphere.exposure * 0.75 / (np.exp(np.log(luminance + 0.02).mean()) + 0.05)
    light *= np.array(room.atmosphere.balance, np.float32)[:, None] * np.float32(exposure)
    colors = _develop(light)
    image = colors[:, :height * width].reshape(3, height, width)
    image[:, edge] = fine.tent(edge, colors)
    image *= _vignette(view.camera, room.atmosphere.vignette)
    noise = np.random.default_rng(seed).standard_normal(image.shape, np.float32)
    image += noise * np.float32(room.atmosphere.noise)
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


def _edges(view: View) -> Bool[np.ndarray, "h w"]:
    """Pixels in which two surfaces, or two faces of one, meet."""
    height, width = view.camera.size
    ids, fine = view.ids, view.fine_ids
    edge = np.zeros(ids.shape, bool)
    for dy, dx in _AROUND:
        edge |= fine[dy:dy + 2 * height:2, dx:dx + 2 * width:2] != ids
    for a, b in ((np.s_[:, 1:], np.s_[:, :-1]), (np.s_[1:], np.s_[:-1])):
        differs = view.faces[a] != view.faces[b]
        edge[a] |= differs
        edge[b] |= differs
    return edge


class _FineSamples:
    """Finer samples around edges, for antialiasing. A sample that sees the same surface as an adjacent pixel takes that
    pixel's color; only the others (``ids``, inverse depths ``w``) are shaded separately, after all pixels. ``nearest``
    is a pixel next to each of these."""

    def __init__(self, view: View, edge: Bool[np.ndarray, "h w"]):
        height, width = edge.shape
        self._view, self._stride = view, 2 * width + 1
        wanted = np.zeros(view.fine_ids.shape, bool)
        for dy, dx in _AROUND:
            wanted[dy:dy + 2 * height:2, dx:dx + 2 * width:2] |= edge
        samples = np.flatnonzero(wanted).astype(np.int32)
        ids, pixels = view.fine_ids.ravel()[samples], view.ids.ravel()
        # Pixel (y, x) is the fine sample (2y+1, 2x+1): an even row lies between two rows of pixels.
        row, column = np.divmod(samples, self._stride)
        source = np.full(len(samples), -1, np.int32)
        for y in (row // 2, (row - 1) // 2):
            for x in (column // 2, (column - 1) // 2):
                pixel = np.clip(y, 0, height - 1) * width + np.clip(x, 0, width - 1)
                source = np.where(pixels[pixel] == ids, pixel, source)
        alone = np.flatnonzero(source < 0)
        self.nearest = pixel[alone]
        source[alone] = height * width + np.arange(len(alone), dtype=np.int32)
        self._source = np.zeros(view.fine_ids.size, np.int32)
        self._source[samples] = source
        self._alone = samples[alone]
        self.ids, self.w = ids[alone], view.fine_w.ravel()[self._alone]

    def slopes(self) -> tuple[Float32[np.ndarray, p], Float32[np.ndarray, p]]:
        """X/Z and Y/Z of the rays of the samples that are shaded."""
        u, v = self._view.camera.grid().pixels()
        row, column = np.divmod(self._alone, self._stride)
        return u[column], v[row]

    def tent(self, edge: Bool[np.ndarray, "h w"], colors: Float32[np.ndarray, "3 p"]) -> Float32[np.ndarray, "3 e"]:
        """The color of the pixels on edges: the mean of the 3x3 fine samples around each, weighed 1 2 1."""
        row, column = np.nonzero(edge)
        corner = 2 * row * self._stride + 2 * column
        total = colors[:, row * edge.shape[1] + column] * np.float32(0.25)
        for dy, dx in _AROUND:
            weight = np.float32((1 + (dy == 1)) * (1 + (dx == 1)) / 16)
            total += weight * np.take(colors, self._source[corner + dy * self._stride + dx], axis=1)
        return total


def _radiance(room: Room, camera: Camera, reaches: list[Reach], ids: Int32[np.ndarray, p],
              u: Float32[np.ndarray, p], v: Float32[np.ndarray, p], w: Float32[np.ndarray, p],
              normals: Float32[np.ndarray, "3 p"], occlusion: Float32[np.ndarray, p]) -> Float32[np.ndarray, "3 p"]:
    """Linear light that comes from each visible point."""
    rotation = camera.rotation.astype(np.float32)
    depth = 1 / w
    ray = np.stack([u, v, np.ones_like(u)])
    points = rotation.T @ (ray * depth) + camera.position.astype(np.float32)[:, None]
    world_normals = rotation.T @ normals
    surfaces = room.surfaces
    which = surfaces.material[ids]
    # The room's frame is the world's; in the frame of a solid only textured points are needed.
    textured = np.array([m.pattern != "plain" for m in room.materials])[which] & (ids >= SHELL)
    textured = np.flatnonzero(textured)
    local, local_normals = points.copy(), world_normals.copy()
    chosen = ids[textured]
    axes = np.take(surfaces.axes.astype(np.float32).reshape(-1, 9).T, chosen, axis=1).reshape(3, 3, -1)
    offset = np.take(points, textured, axis=1) - np.take(surfaces.origin.astype(np.float32).T, chosen, axis=1)
    local[:, textured] = (axes * offset[:, None]).sum(0)
    local_normals[:, textured] = (axes * np.take(world_normals, textured, axis=1)[:, None]).sum(0)
    length = np.sqrt((ray * ray).sum(0))
    facing = np.maximum(-(ray * normals).sum(0) / length, 0.05)
    footprint = depth / np.float32(camera.focal) / facing
    color = albedo(room.materials, which, local, local_normals, footprint)

    sky = np.array(room.atmosphere.sky, np.float32)[:, None]
    bounce = np.array(room.atmosphere.bounce, np.float32)[:, None]
    up = 0.5 + 0.5 * world_normals[2]
    arriving = (bounce + (sky - bounce) * up) * occlusion
    # Most surfaces are matte: highlights (Blinn-Phong) are computed only for the rest.
    gloss = np.array([m.gloss for m in room.materials], np.float32)[which]
    shiny = np.flatnonzero(gloss > 0.05)
    highlight = np.zeros((3, len(shiny)), np.float32)
    shiny_normals, shiny_points = world_normals[:, shiny], points[:, shiny]
    towards_eye = -(rotation.T @ ray[:, shiny]) / length[shiny]
    for reach in reaches:
        incoming = reach(points, world_normals)
        arriving += incoming * (0.4 + 0.6 * occlusion)
        to_light = np.array(reach.light.position, np.float32)[:, None] - shiny_points
        half = to_light / np.sqrt((to_light * to_light).sum(0)) + towards_eye
        cosine = np.maximum((half * shiny_normals).sum(0), 0) / np.sqrt((half * half).sum(0))
        for _ in range(5):  # to the power of 32
            cosine *= cosine
        highlight += incoming[:, shiny] * cosine
    light = color * arriving
    light[:, shiny] += highlight * gloss[shiny] * 1.5
    emission = np.array([m.emission for m in room.materials], np.float32)[which]
    return light + color * emission


def _develop(light: Float32[np.ndarray, "3 p"]) -> Float32[np.ndarray, "3 p"]:
    """Exposed linear light to display values: a shoulder for the highlights, then gamma 2.2."""
    return (1 - np.exp(-light)) ** np.float32(1 / 2.2)


def ambient_occlusion(w: Float32[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """How exposed each point is to ambient light, in [0, 1], computed from the inverse depths alone.

    On a plane the inverse depth is affine, so that opposite neighbors average to the point between them; in a hollow
    they are nearer. This is summed over several distances and directions; objects far in front do not count.
    """
    height, width = w.shape
    total = np.zeros_like(w)
    inverse = 1 / w
    for share in (0.008, 0.016, 0.03, 0.05):
        step = max(1, round(share * width))
        padded = np.pad(w, step, mode="edge")
        for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
            a = padded[step + dy * step:step + dy * step + height, step + dx * step:step + dx * step + width]
            b = padded[step - dy * step:step - dy * step + height, step - dx * step:step - dx * step + width]
            hollow = a + b
            hollow *= np.float32(0.5) * inverse
            hollow -= 1
            # A large difference is an object in front, not a hollow: its weight falls to zero.
            near = np.float32(1) - np.abs(hollow) * np.float32(1 / (0.04 + share))
            np.maximum(near, 0, out=near)
            hollow *= near
            hollow *= np.float32(0.45 / share)
            total += np.maximum(hollow, np.float32(-0.15), out=hollow)
    # Four distances leave rings around creases; a blur of that width hides them.
    total = uniform_filter(total, max(1, round(0.008 * width)))
    return np.clip(1 - np.float32(0.22) * total, 0.3, 1.0)


def _vignette(camera: Camera, strength: float) -> Float32[np.ndarray, "h w"]:
    height, width = camera.size
    y, x = np.linspace(-1, 1, height, dtype=np.float32), np.linspace(-1, 1, width, dtype=np.float32)
    return 1 - np.float32(strength / 2) * (x * x + (y * y)[:, None])
