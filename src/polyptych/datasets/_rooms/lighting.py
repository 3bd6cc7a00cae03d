"""Lights, and their shadow maps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random

import numpy as np
from jaxtyping import Float32

from polyptych.datasets._rooms.casting import cast, look
from polyptych.datasets._rooms.furniture import Style
from polyptych.datasets._rooms.placing import Placed
from polyptych.datasets._rooms.solids import Solids

_TAPS = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1), (-1, 2), (1, -2), (-2, -1), (2, 1))


@dataclass(frozen=True)
class Light:
    """A lamp, the sky in a window, or the sun.

    Attributes:
        position, target: in the world; it shines toward ``target``.
        color: linear light at a distance of 1 m (of the target, if the falloff is off).
        spread: tangent of half the angle that its shadow map covers.
        falloff: whether it weakens with the square of the distance.
        frontal: whether it weakens with the cosine of the angle to its axis, as a window does.
        shadows: resolution of its shadow map, 0 for a weak light that casts none.
        softness: half the width of its shadow edges, in texels.
        aperture: (axis, plane, low, high, z low, z high) of the rectangle its rays must pass.
    """

    position: tuple[float, float, float]
    target: tuple[float, float, float]
    color: tuple[float, float, float]
    spread: float = 2.4
    falloff: bool = True
    frontal: bool = False
    shadows: int = 0
    softness: int = 1
    aperture: tuple[int, float, float, float, float, float] | None = None


@dataclass(frozen=True)
class Atmosphere:
    """Ambient light, and the settings of the camera: exposure (1 is well exposed), white balance, vignette and
    noise."""

    sky: tuple[float, float, float]
    bounce: tuple[float, float, float]
    exposure: float
    balance: tuple[float, float, float]
    vignette: float
    noise: float


def illuminate(rng: Random, windows: list[Placed], ceiling: list[tuple[float, float, float]],
               lamps: list[tuple[float, float, float]], size: tuple[float, float, float],
               style: Style) -> tuple[list[Light], Atmosphere]:
    """Lights for a room: by day from the windows, else from its lamps."""
    day = bool(windows) and rng.random() < 0.75
    lights: list[Light] = []
    if day:
        main = windows[0]
        x, y, z = main.world(0.0, 0.12, 0.1)
        inward = main.world(0.0, 1.0, -0.12)
        power = rng.uniform(2.6, 4.0) * (main.piece.size[0] * main.piece.size[2]) ** 0.5
        lights.append(Light((x, y, z), inward, (0.92 * power, 0.98 * power, 1.06 * power), frontal=True, shadows=128,
                            softness=2))
        if rng.random() < 0.6:
            lights.append(_sun(rng, main, size))
    if ceiling and (not day or rng.random() < 0.3):
        power = rng.uniform(1.6, 2.6) * (0.5 if day else 1.0)
        for x, y, z in ceiling[:1 if day else 2]:
            lights.append(Light((x, y, z), (x, y + 1e-3, 0), (1.08 * power, 0.96 * power, 0.80 * power), shadows=128,
                                softness=1))
    if not lights:
        x, y, z = size[0] * rng.uniform(0.3, 0.7), size[1] * rng.uniform(0.3, 0.6), size[2] - 0.1
        lights.append(Light((x, y, z), (x, y + 1e-3, 0), (2.2, 2.05, 1.85), shadows=128, softness=2))
    for x, y, z in lamps[:3]:
        power = rng.uniform(0.12, 0.4)
        lights.append(Light((x, y, z), (x, y + 1e-3, 0), (1.2 * power, 0.9 * power, 0.55 * power)))
    level = rng.uniform(0.10, 0.18) if day else rng.uniform(0.07, 0.14)
    warm = rng.uniform(-0.07, 0.07)
    red, green, blue = (level * (0.55 + 0.5 * v) for v in style.wood)  # of the floor
    return lights, Atmosphere(
        sky=(level * (0.95 if day else 1.05), level, level * (1.06 if day else 0.9)),
        bounce=(red, green, blue),
        exposure=rng.uniform(0.82, 1.22), balance=(1 + warm, 1 + rng.uniform(-0.015, 0.015), 1 - warm),
        vignette=rng.uniform(0.05, 0.3), noise=rng.uniform(0.003, 0.014))


def _sun(rng: Random, window: Placed, size: tuple[float, float, float]) -> Light:
    """Beams through a window; the sun is far enough away for them to be nearly parallel."""
    center = window.world(0.0, 0.0, 0.0)
    slope, side = rng.uniform(0.45, 0.9), rng.uniform(-0.7, 0.7)
    inner = window.world(side, 1.0, -slope)
    direction = [a - b for a, b in zip(inner, center, strict=True)]
    length = math.hypot(*direction)
    x, y, z = (p - 14 * d / length for p, d in zip(center, direction, strict=True))
    width, _, height = window.piece.size
    facing_x = abs(math.sin(window.yaw)) > 0.5
    axis, along = (0, center[1]) if facing_x else (1, center[0])
    aperture = (axis, center[axis], along - width / 2 + 0.05, along + width / 2 - 0.05,
                center[2] - height / 2 + 0.05, center[2] + height / 2 - 0.05)
    power = rng.uniform(1.6, 2.8)
    return Light((x, y, z), center, (1.1 * power, 0.98 * power, 0.8 * power), spread=0.3, falloff=False,
                 shadows=192, aperture=aperture)


class Reach:
    """The shadow map of a light: inverse depths seen from it. Shadows are part of the image, not of a label, so a map
    of fixed resolution with softened edges is enough."""

    def __init__(self, light: Light, solids: Solids):
        self.light = light
        resolution = max(light.shadows, 1)
        self.camera = look(light.position, light.target, resolution / 2 / light.spread, (resolution, resolution))
        self.nearest = np.zeros((resolution, resolution), np.float32)
        if light.shadows:
            # The lamp itself casts no shadow, and those of very small objects would not be visible.
            cast(solids.only(~solids.inside(self.camera.position, 0.05)), self.camera, self.nearest, None, 8.0)

    def __call__(self, points: Float32[np.ndarray, "3 p"], normals: Float32[np.ndarray, "3 p"]
                 ) -> Float32[np.ndarray, "3 p"]:
        """Light that arrives at points with given normals (linear rgb)."""
        light = self.light
        ray = np.array(light.position, np.float32)[:, None] - points
        square = (ray * ray).sum(0)
        cosine = (ray * normals).sum(0) / np.sqrt(square)
        strength = np.maximum(cosine, 0)
        if light.falloff:
            strength /= square + 0.35  # a lamp has a size: close to it, light does not grow without bound
        if light.frontal:
            forward = self.camera.rotation[2].astype(np.float32)
            strength *= np.clip(-(ray * forward[:, None]).sum(0) / np.sqrt(square), 0, 1) * 0.9 + 0.1
        if light.aperture:
            strength *= self._through_aperture(points, ray)
        if light.shadows:
            # Two centimeters off the surface; otherwise texels of the map would shadow it in stripes (shadow acne).
            lit = np.flatnonzero(strength > 1e-4)
            strength[lit] *= self._unshadowed(points[:, lit] + normals[:, lit] * np.float32(0.02))
        return np.array(light.color, np.float32)[:, None] * strength

    def _through_aperture(self, points: np.ndarray, ray: np.ndarray) -> np.ndarray:
        axis, plane, low, high, z_low, z_high = self.light.aperture  # type: ignore[misc]  # only called with one
        t = (np.float32(plane) - points[axis]) / ray[axis]
        along, z = points[1 - axis] + t * ray[1 - axis], points[2] + t * ray[2]
        # Mullions as in decoration.window: one upright in the middle, one bar above it.
        mullion = (np.abs(along - (low + high) / 2) < 0.03) | (np.abs(z - (0.35 * z_low + 0.65 * z_high)) < 0.025)
        inside = (along > low) & (along < high) & (z > z_low) & (z < z_high)
        return (inside & ~mullion).astype(np.float32)

    def _unshadowed(self, points: np.ndarray) -> np.ndarray:
        local = self.camera.rotation.astype(np.float32) @ (points - self.camera.position.astype(np.float32)[:, None])
        size, border = self.light.shadows, 2 * self.light.softness
        nearness = 1 / np.maximum(local[2], np.float32(1e-3))
        middle = np.float32((size - 1) / 2)
        x, y = local[:2] * (nearness * np.float32(self.camera.focal)) + middle
        # Points beyond the map are clipped into an empty border around it, where nothing casts a shadow.
        stride = size + 4 * border
        column = np.clip(np.rint(x), -border, size + border - 1).astype(np.int32)
        row = np.clip(np.rint(y), -border, size + border - 1).astype(np.int32)
        place = row * np.int32(stride) + column + np.int32(2 * border * (stride + 1))
        flat = np.pad(self.nearest, 2 * border).ravel()
        limit = nearness * np.float32(1.008)  # the same against rounding, in proportion to the distance
        open_ = np.zeros(len(limit), np.float32)
        for dy, dx in _TAPS:
            open_ += flat[place + np.int32(self.light.softness * (dy * stride + dx))] <= limit
        open_ *= np.float32(1 / len(_TAPS))
        return open_
