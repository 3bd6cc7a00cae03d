"""Visibility: which surface each pixel sees, at which distance and angle, exactly and fast.

Let w be the inverse depth along the ray of pixel (x, y). A ray meets a plane at a w that is *affine* in x and y, and a
quadric at ``w = b + sqrt(disc)``, with b affine and disc a quadratic polynomial. A ray enters a convex solid at the
smallest w among the surfaces that the camera is outside of, and leaves it at the largest w among those it is inside of.
So no pixel needs a division, and each solid affects only the pixels of its projected bounding rectangle. The nearest
surface is the one with the largest w.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float32, Float64, Int32

from polyptych.datasets._rooms.solids import SHELL, Solids

NEAR = 0.05
"""Minimum distance in front of the camera, in meters, at which a corner still projects sensibly."""
_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
_BEHIND = -1e9


@dataclass(frozen=True)
class Camera:
    """A pinhole camera. Pixel centers have integer coordinates.

    Attributes:
        position: position in the world.
        rotation: rows are the camera's x (right), y (down) and z (forward) axes in the world.
        focal: fx = fy, in pixels.
        size: height and width; the principal point (cx, cy) is the middle of the picture.
    """

    position: Float64[np.ndarray, 3]
    rotation: Float64[np.ndarray, "3 3"]
    focal: float
    size: tuple[int, int]

    @property
    def intrinsics(self) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy: a point at (X, Y, Z) in the camera's frame projects to (fx X/Z + cx, fy Y/Z + cy)."""
        height, width = self.size
        return self.focal, self.focal, (width - 1) / 2, (height - 1) / 2

    def grid(self) -> Camera:
        """The same view with samples at the centers, edges and corners of the pixels: (2h+1, 2w+1), pixel (y, x) at
        (2y+1, 2x+1)."""
        return replace(self, focal=self.focal * 2, size=(self.size[0] * 2 + 1, self.size[1] * 2 + 1))

    def project(self, points: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
        """World points to x, y in pixels and depth z; meaningless where z is not positive."""
        fx, fy, cx, cy = self.intrinsics
        local = (points - self.position) @ self.rotation.T
        z = np.where(np.abs(local[:, 2]) < 1e-9, 1e-9, local[:, 2])
        return np.stack([fx * local[:, 0] / z + cx, fy * local[:, 1] / z + cy, local[:, 2]], 1)

    def pixels(self) -> tuple[Float32[np.ndarray, w], Float32[np.ndarray, h]]:
        """The slopes X/Z of the columns and Y/Z of the rows."""
        fx, fy, cx, cy = self.intrinsics
        height, width = self.size
        return (((np.arange(width) - cx) / fx).astype(np.float32), ((np.arange(height) - cy) / fy).astype(np.float32))


def look(position: tuple[float, ...], target: tuple[float, ...], focal: float, size: tuple[int, int],
         roll: float = 0.0) -> Camera:
    """A camera at ``position`` that looks at ``target``; ``roll`` turns it about its axis (radians)."""
    forward = np.array(target) - np.array(position)
    forward /= np.linalg.norm(forward)
    up = np.array((0.0, 0.0, 1.0)) if abs(forward[2]) < 0.999 else np.array((0.0, 1.0, 0.0))
    right = np.cross(forward, up)
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    c, s = np.cos(roll), np.sin(roll)
    return Camera(np.array(position), np.stack([c * right + s * down, c * down - s * right, forward]), focal, size)


def room_normals() -> Float64[np.ndarray, "6 3"]:
    """Outward normals of the faces of the room, in the order of :data:`SHELL`."""
    return np.stack([-np.eye(3), np.eye(3)], 1).reshape(6, 3)


def cast_room(room: tuple[float, float, float], camera: Camera
              ) -> tuple[Float32[np.ndarray, "h w"], Int32[np.ndarray, "h w"]]:
    """Inverse depth and face of the empty room (0, 0, 0) to ``room``, seen from inside."""
    coefficients = _room_planes(room, camera)
    u, v = camera.pixels()
    # From inside a convex room, a ray leaves through the first face that it meets, the one with the largest w. Faces
    # behind the camera have negative w and never win.
    w = np.full(camera.size, np.float32(_BEHIND))
    face = np.zeros(camera.size, np.int32)
    for i, (cu, cv, c0) in enumerate(coefficients.astype(np.float32)):
        plane = (cu * u + c0) + (cv * v)[:, None]
        face[plane > w] = i
        np.maximum(w, plane, out=w)
    return w, face


def _room_planes(room: tuple[float, float, float], camera: Camera) -> Float64[np.ndarray, "6 3"]:
    """Affine inverse depths of the six faces. A plane n . x = d is met from p at depth (d - n . p) / (n . ray), so that
    w = (n . ray) / (d - n . p), and n in the camera's frame holds the coefficients of X/Z, Y/Z and 1."""
    normals = room_normals()
    offsets = np.array([0.0, room[0], 0.0, room[1], 0.0, room[2]])
    return normals @ camera.rotation.T / (offsets - normals @ camera.position)[:, None]


@np.errstate(invalid="ignore")
def cast(solids: Solids, camera: Camera, w: Float32[np.ndarray, "h w"], ids: Int32[np.ndarray, "h w"] | None,
         smallest: float = 0.0) -> None:
    """Draw all solids into the inverse depths ``w`` and, if given, the surface ``ids``, in place. Solids whose
    bounding rectangle covers less than ``smallest`` pixels are left out."""
    rectangles, seen = _rectangles(solids, camera, smallest)
    outside, used, coefficients = _plane_table(solids, camera, seen)
    u, v = camera.pixels()
    # An affine function of the pixel is a row plus a column. Both are computed once for all planes, so that the loop
    # over solids below only adds.
    present = coefficients[np.arange(6) < used[:, None]].astype(np.float32)
    rows = (present[:, 0, None] * u + present[:, 2, None])[:, None, :]
    columns = (present[:, 1, None] * v)[:, :, None]
    first = np.cumsum(used) - used
    curved = solids.curvature[seen].any(1)
    quadrics = _Quadrics(solids, camera, seen[curved])
    quadric = np.where(curved, np.cumsum(curved) - 1, -1)
    for solid, (x0, x1, y0, y1), out, use, p, q in zip(
            seen.tolist(), rectangles.tolist(), outside.tolist(), used.tolist(), first.tolist(), quadric.tolist(),
            strict=True):
        enter = leave = None
        if use:
            planes = rows[p:p + use, :, x0:x1] + columns[p:p + use, y0:y1]
            # The ray is inside once it has passed every plane that the camera is outside of, so the farthest of these
            # (the smallest w) is where it enters; it is out again at the nearest of the others (the largest w).
            if out:
                enter = planes[0]
                for k in range(1, out):
                    np.minimum(enter, planes[k], out=enter)
            if use > out:
                leave = planes[out]
                for k in range(out + 1, use):
                    np.maximum(leave, planes[k], out=leave)
        if q >= 0:
            near, far = quadrics.meet(q, x0, x1, y0, y1, leaves=use > 0)
            if near is not None:
                enter = near if enter is None else np.minimum(enter, near, out=near)
            if far is not None:
                leave = far if leave is None else np.maximum(leave, far, out=far)
        if enter is None:
            continue  # the camera is inside the solid
        # Seen if it is entered before it is left (or the ray misses), and before what was drawn so far. NaN, where a
        # ray misses a quadric, compares false. The buffers of this solid are overwritten: nothing else needs them.
        target = w[y0:y1, x0:x1]
        visible = enter > (target if leave is None else np.maximum(leave, target, out=leave))
        np.copyto(target, enter, where=visible)
        if ids is not None:
            np.copyto(ids[y0:y1, x0:x1], np.int32(solid + SHELL), where=visible)


def _rectangles(solids: Solids, camera: Camera, smallest: float) -> tuple[np.ndarray, np.ndarray]:
    """Pixel rectangles (x0, x1, y0, y1) that contain the solids, and which solids have one."""
    height, width = camera.size
    offsets = np.einsum("nij,cj,nj->nci", solids.axes, _CORNERS, solids.half)
    corners = solids.center[:, None] + offsets
    x, y, z = np.moveaxis(camera.project(corners.reshape(-1, 3)).reshape(-1, 8, 3), 2, 0)
    # Corners behind the camera project to the wrong side, so a solid that extends behind it gets the whole picture.
    crossing = z.min(1) < NEAR
    # A pixel belongs to a rectangle if its center does; half a pixel of margin absorbs rounding.
    x0, x1 = np.where(crossing, 0, x.min(1) - 0.5), np.where(crossing, width, x.max(1) + 1.5)
    y0, y1 = np.where(crossing, 0, y.min(1) - 0.5), np.where(crossing, height, y.max(1) + 1.5)
    rectangles = np.stack([np.clip(np.ceil(x0), 0, width), np.clip(np.floor(x1), 0, width),
                           np.clip(np.ceil(y0), 0, height), np.clip(np.floor(y1), 0, height)], 1).astype(np.int64)
    seen = crossing | (np.ptp(x, 1) * np.ptp(y, 1) >= smallest)
    seen &= (z.max(1) > NEAR) & (rectangles[:, 0] < rectangles[:, 1]) & (rectangles[:, 2] < rectangles[:, 3])
    seen = np.flatnonzero(seen)
    return rectangles[seen], seen


def _plane_table(solids: Solids, camera: Camera, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per solid: how many planes the camera is outside of, how many there are, and the affine inverse depths
    (n 6 3: per X/Z, per Y/Z, constant), planes seen from outside first, absent ones last."""
    normals = solids.normals()[seen]
    distance = solids.planes[seen] - np.einsum("nki,ni->nk", normals, camera.position - solids.center[seen])
    # A camera exactly on a plane would divide by zero; a tenth of a micrometer inside, the plane is seen edge-on.
    absent = np.isinf(distance)
    distance = np.where(np.abs(distance) < 1e-7, 1e-7, distance)
    order = np.argsort(np.where(absent, 2, np.where(distance < 0, 0, 1)), 1, kind="stable")
    coefficients = normals @ camera.rotation.T / np.where(absent, 1, distance)[..., None]
    coefficients = np.take_along_axis(coefficients, order[..., None], 1)
    return (distance < 0).sum(1), (~absent).sum(1), coefficients


class _Quadrics:
    """The quadrics of some solids: w = b +- sqrt(disc), both scaled by the constant of the quadratic equation."""

    def __init__(self, solids: Solids, camera: Camera, seen: np.ndarray):
        curvature = solids.curvature[seen]
        basis = np.einsum("nk,njk->nkj", curvature, solids.axes[seen])  # world to unit-sphere coordinates
        start = np.einsum("nkj,nj->nk", basis, camera.position - solids.center[seen])
        slopes = basis @ camera.rotation.T  # its columns: per X/Z, per Y/Z, constant
        # |start + t slopes . ray| = 1 is quadratic in t; divided by t squared it is one in w = 1 / t whose leading
        # coefficient does not depend on the pixel, which is why b and disc are polynomials.
        constant = (start * start).sum(1) - 1
        constant = np.where(np.abs(constant) < 1e-9, 1e-9, constant)
        self.inside = (constant < 0).tolist()
        linear = -np.einsum("nk,nkc->nc", start, slopes) / constant[:, None]
        # disc as a symmetric form in (X/Z, Y/Z, 1), moved to the middle of the solid, where it is well conditioned:
        # far from the origin of the picture its terms would cancel in float32.
        form = linear[:, :, None] * linear[:, None, :] - slopes.transpose(0, 2, 1) @ slopes / constant[:, None, None]
        middle = (solids.center[seen] - camera.position) @ camera.rotation.T
        shift = np.broadcast_to(np.eye(3), form.shape).copy()
        shift[:, :2, 2] = middle[:, :2] / np.maximum(middle[:, 2:], NEAR)
        form = shift.transpose(0, 2, 1) @ form @ shift
        u, v = camera.pixels()
        du, dv = u - shift[:, 0, 2, None], v - shift[:, 1, 2, None]
        f = form[..., None]
        self._b_row = (linear[:, 0, None] * u + linear[:, 2, None]).astype(np.float32)
        self._b_column = (linear[:, 1, None] * v).astype(np.float32)[..., None]
        self._row = ((f[:, 0, 0] * du + 2 * f[:, 0, 2]) * du + f[:, 2, 2]).astype(np.float32)
        self._column = ((f[:, 1, 1] * dv + 2 * f[:, 1, 2]) * dv).astype(np.float32)[..., None]
        self._cross_row = (2 * f[:, 0, 1] * du).astype(np.float32)
        self._cross_column = dv.astype(np.float32)[..., None]

    def meet(self, i: int, x0: int, x1: int, y0: int, y1: int, leaves: bool
             ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Where the rays of a rectangle enter (None if the camera is inside) and, if that is asked for, where they
        leave; NaN where they miss, which fails every comparison and passes through minimum and maximum."""
        disc = self._cross_column[i, y0:y1] * self._cross_row[i, x0:x1]
        disc += self._row[i, x0:x1]
        disc += self._column[i, y0:y1]
        root = np.sqrt(disc, out=disc)
        b = self._b_column[i, y0:y1] + self._b_row[i, x0:x1]
        if self.inside[i]:
            return None, np.add(b, root, out=b)
        far = b - root if leaves else None
        return np.add(b, root, out=b), far


def surface_normals(solids: Solids, room: tuple[float, float, float], camera: Camera, ids: Int32[np.ndarray, p],
                    u: Float32[np.ndarray, p], v: Float32[np.ndarray, p], w: Float32[np.ndarray, p],
                    ) -> tuple[Float32[np.ndarray, "3 p"], Int32[np.ndarray, p]]:
    """Unit normals in the camera's frame, toward the camera, and the face of the solid (6 for its quadric).

    ``ids`` are surfaces, ``u`` and ``v`` the slopes of the rays and ``w`` the inverse depths where they meet.
    """
    # Which plane of its solid a pixel shows follows from the inverse depths: the smallest w among the planes that the
    # camera is outside of (see `cast`). Planes seen from inside are never visible and get a w that never wins.
    count = len(solids)
    outside, _, coefficients = _plane_table(solids, camera, np.arange(count))
    slots = max(int(outside.max(initial=0)), 1)
    table = coefficients[:, :slots].copy()
    table[np.arange(slots) >= outside[:, None]] = (0, 0, -_BEHIND)
    shell = np.full((SHELL, slots, 3), (0, 0, -_BEHIND))
    shell[:, 0] = _room_planes(room, camera)
    table = np.concatenate([shell, table]).astype(np.float32).transpose(1, 2, 0)
    w_plane = np.full(len(ids), np.float32(-_BEHIND))
    slot = np.zeros(len(ids), np.int64)
    for k in range(slots):
        cu, cv, c0 = np.take(table[k], ids, axis=1)
        plane = cu * u
        plane += cv * v
        plane += c0
        slot[plane < w_plane] = k
        np.minimum(w_plane, plane, out=w_plane)
    # An affine w is proportional to the plane's normal in the camera's frame, so the table holds the normals too.
    directions = table / np.maximum(np.sqrt((table * table).sum(1, keepdims=True)), 1e-20)
    columns = np.ascontiguousarray(directions.transpose(1, 0, 2)).reshape(3, -1)
    normals = np.take(columns, slot * table.shape[2] + ids, axis=1)
    face = slot.astype(np.int32)
    # If the surface is farther than all planes that bound it, the quadric is visible.
    curved = np.concatenate([np.zeros(SHELL, bool), solids.curvature.any(1)])
    round_ = np.flatnonzero(curved[ids] & (w_plane > w * np.float32(1 + 1e-5)))
    normals[:, round_] = _quadric_normals(solids, camera, ids[round_] - SHELL, u[round_], v[round_], w[round_])
    face[round_] = 6
    # Quadrics point outward and planes by the sign of their distance; labels point toward the camera.
    facing = normals[0] * u + normals[1] * v + normals[2]
    normals *= np.where(facing > 0, np.float32(-1), np.float32(1))
    return normals, face


def _quadric_normals(solids: Solids, camera: Camera, ids: np.ndarray, u: np.ndarray, v: np.ndarray, w: np.ndarray
                     ) -> Float32[np.ndarray, "3 p"]:
    """The gradient of ``|curvature * local|^2`` where the quadric is seen, which is normal to it, in the camera's
    frame."""
    axes = (camera.rotation @ solids.axes).astype(np.float32)
    center = ((solids.center - camera.position) @ camera.rotation.T).astype(np.float32)
    matrix = (axes * (solids.curvature**2).astype(np.float32)[:, None, :]) @ axes.transpose(0, 2, 1)
    depth = 1 / w
    offset = np.stack([u * depth, v * depth, depth]) - center.T[:, ids]
    normals = np.einsum("pij,jp->ip", matrix[ids], offset)
    return normals / np.maximum(np.sqrt((normals * normals).sum(0)), 1e-20)
