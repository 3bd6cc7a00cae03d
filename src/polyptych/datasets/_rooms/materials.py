"""Procedural textures: patterns whose color edges are no edges of objects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from random import Random

import numpy as np
from jaxtyping import Float32, Int64

Color = tuple[float, float, float]


@dataclass(frozen=True)
class Material:
    """How a surface looks.

    Attributes:
        color, second: sRGB in [0, 1]; what they are for depends on the pattern.
        pattern: a name in :data:`PATTERNS`.
        scale: size of one element of the pattern in meters, along and across.
        gloss: strength of the highlight.
        emission: light of its own, as a multiple of its color.
        glass: depth and normals cannot be measured there.
        seed: chooses among the variants of a pattern.
    """

    color: Color
    second: Color = (0.0, 0.0, 0.0)
    pattern: str = "plain"
    scale: tuple[float, float] = (0.1, 0.1)
    gloss: float = 0.0
    emission: float = 0.0
    glass: bool = False
    seed: int = 0


def darker(color: Color, factor: float) -> Color:
    red, green, blue = color
    return red * factor, green * factor, blue * factor


def any_color(rng: Random, low: float, high: float) -> Color:
    return rng.uniform(low, high), rng.uniform(low, high), rng.uniform(low, high)


@cache
def _noise() -> Float32[np.ndarray, "256 256"]:
    """Smooth periodic noise of mean 0 and deviation 1."""
    rng = np.random.default_rng(20130)
    fy, fx = np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)
    radius = np.hypot(fx, fy)
    spectrum = np.fft.rfft2(rng.standard_normal((256, 256))) / (0.012 + radius) ** 1.5
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, (256, 256))
    return (noise / noise.std()).astype(np.float32)


def _sample(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _noise()[np.floor(y).astype(np.int32) & 255, np.floor(x).astype(np.int32) & 255]


def _smooth(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Bilinear, for patterns that are seen enlarged."""
    x0, y0 = np.floor(x), np.floor(y)
    fx, fy = x - x0, y - y0
    upper = _sample(x0, y0) * (1 - fx) + _sample(x0 + 1, y0) * fx
    lower = _sample(x0, y0 + 1) * (1 - fx) + _sample(x0 + 1, y0 + 1) * fx
    return upper * (1 - fy) + lower * fy


def _hash(i: np.ndarray, j: np.ndarray, seed: int) -> np.ndarray:
    """A number in [0, 1) for every cell of a lattice."""
    h = i.astype(np.int32).astype(np.uint32) * np.uint32(374761393)
    h += j.astype(np.int32).astype(np.uint32) * np.uint32(668265263)
    h += np.uint32(seed * 974711 & 0xFFFFFFFF)
    h ^= h >> np.uint32(13)
    h *= np.uint32(1274126177)
    h ^= h >> np.uint32(16)
    return (h & np.uint32(0xFFFF)).astype(np.float32) / np.float32(65536)


def _mix(m: Material, share: np.ndarray | float, tone: np.ndarray | float = 1.0) -> np.ndarray:
    a, b = linear(m.color)[:, None], linear(m.second)[:, None]
    return (a + (b - a) * share) * tone


def _checker(m: Material, x: np.ndarray, y: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    odd = (np.floor(x / m.scale[0]) + np.floor(y / m.scale[1])) % 2
    return _mix(m, 0.5 + (odd - 0.5) * sharp)


def _stripes(m: Material, x: np.ndarray, y: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    odd = np.floor(x / m.scale[0]) % 2
    return _mix(m, 0.5 + (odd - 0.5) * sharp)


def _planks(m: Material, x: np.ndarray, y: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    lane = np.floor(x / m.scale[0])
    along = y / m.scale[1] + _hash(lane, lane, m.seed)
    tone = 1 + (_hash(lane, np.floor(along), m.seed + 1) - 0.5) * 0.45
    grain = _sample(x * 160 + m.seed, y * 9) * 0.09 + 0.3
    seam = ((x / m.scale[0] - lane) < 0.035) * sharp
    return _mix(m, np.clip(grain, 0, 1), tone * (1 - 0.55 * seam))


def _wood(m: Material, x: np.ndarray, y: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    rings = np.sin(x / m.scale[0] * 6 + 1.6 * _sample(x * 30 + m.seed, y * 12)) * sharp
    return _mix(m, 0.35 + 0.25 * rings + 0.06 * _sample(x * 300, y * 14))


def _bricks(m: Material, x: np.ndarray, y: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    row = np.floor(y / m.scale[1])
    along = x / m.scale[0] + 0.5 * (row % 2)
    column = np.floor(along)
    joint = ((along - column) * m.scale[0] < 0.012) | ((y / m.scale[1] - row) * m.scale[1] < 0.012)
    tone = 0.78 + 0.4 * _hash(column, row, m.seed) + 0.05 * _sample(x * 120, y * 120)
    return _mix(m, joint * sharp, np.where(joint, 1, tone))


def _tiles(m: Material, x: np.ndarray, y: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    fx, fy = x / m.scale[0], y / m.scale[1]
    i, j = np.floor(fx), np.floor(fy)
    joint = ((fx - i) * m.scale[0] < 0.01) | ((fy - j) * m.scale[1] < 0.01)
    return _mix(m, joint * sharp, 0.92 + 0.14 * _hash(i, j, m.seed) + 0.03 * _sample(x * 60, y * 60))


def _fabric(m: Material, x: np.ndarray, y: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    return _mix(m, 0.0, 1 + 0.06 * sharp * _sample(x * 600 + m.seed, y * 600))


def _marble(m: Material, x: np.ndarray, y: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    field = _smooth(x / m.scale[0] * 16 + m.seed, y / m.scale[1] * 16 + m.seed)
    return _mix(m, np.clip(0.5 + 0.35 * field, 0, 1))


def _dots(m: Material, x: np.ndarray, y: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    fx, fy = x / m.scale[0] % 1 - 0.5, y / m.scale[1] % 1 - 0.5
    return _mix(m, (fx * fx + fy * fy < 0.07) * sharp + (1 - sharp) * 0.2)


def _rug(m: Material, x: np.ndarray, y: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    """A border and rhombs; x and y are relative to the middle, ``scale`` is half the size of the rug."""
    fx, fy = np.abs(x) / m.scale[0], np.abs(y) / m.scale[1]
    edge = np.maximum(fx, fy)
    rhombs = np.floor((fx * m.scale[0] + fy * m.scale[1]) / 0.13) % 2
    share = np.where(edge > 0.93, 0.9, np.where(edge > 0.82, 0.1, 0.25 + 0.5 * rhombs * sharp))
    return _mix(m, share, 1 + 0.05 * _sample(x * 300, y * 300))


def _art(m: Material, x: np.ndarray, y: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    """An abstract painting of flat color fields."""
    a = _smooth(x / m.scale[0] * 9 + m.seed, y / m.scale[1] * 9 + 7 * m.seed)
    b = _smooth(x / m.scale[0] * 11 + 3 * m.seed, y / m.scale[1] * 11 + 91)
    third = np.array(m.color)[[1, 2, 0]]
    fields = np.stack([linear(m.color), linear(m.second), linear(tuple(third)), np.array((0.85, 0.8, 0.7))], 1)
    index = (a > 0.15).astype(np.int64) + 2 * (b > 0.2)
    return fields[:, index]


def _view(m: Material, x: np.ndarray, y: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    """What a window shows: sky above hills. y is the height relative to the middle of the window."""
    ridge = -0.12 + 0.10 * _smooth(x * 18 + m.seed, np.full_like(x, m.seed))
    near = -0.34 + 0.06 * _smooth(x * 40 + m.seed, np.full_like(x, m.seed + 90))
    sky = _mix(m, np.clip(0.5 - y * 0.7, 0, 1))
    hills = np.array((0.30, 0.42, 0.36))[:, None] * (1 + 0.1 * _sample(x * 90, y * 90))
    trees = np.array((0.10, 0.20, 0.07))[:, None] * (1 + 0.3 * _sample(x * 150, y * 150))
    return np.where(y < near, trees, np.where(y < ridge, hills, sky))


def _books(m: Material, x: np.ndarray, y: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    """Spines of books of various colors."""
    group = np.floor(x / (5 * m.scale[0]))
    spine = np.floor(x / (m.scale[0] * (0.75 + 0.5 * _hash(group, group, m.seed))))
    row = np.zeros_like(spine)
    rgb = np.stack([_hash(spine, row + k, m.seed) for k in range(3)])
    gray = rgb.mean(0)
    rgb = 0.04 + 0.5 * np.clip(gray + (rgb - gray) * 1.3, 0, 1) ** 1.6
    band = 1 - 0.35 * sharp * ((y / m.scale[1]) % 1 < 0.15)
    return rgb * band


def _screen(m: Material, x: np.ndarray, y: np.ndarray, sharp: np.ndarray) -> np.ndarray:
    return _mix(m, np.clip(0.5 + 0.8 * (x + y), 0, 1))


Pattern = Callable[[Material, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
PATTERNS: dict[str, Pattern] = {
    "checker": _checker, "stripes": _stripes, "planks": _planks, "wood": _wood, "bricks": _bricks, "tiles": _tiles,
    "fabric": _fabric, "marble": _marble, "dots": _dots, "rug": _rug, "art": _art, "view": _view, "books": _books,
    "screen": _screen,
}


def linear(color: Color) -> Float32[np.ndarray, 3]:
    """sRGB in [0, 1] to linear light (gamma 2.2)."""
    return np.array([c**2.2 for c in color], np.float32)


def albedo(materials: list[Material], which: Int64[np.ndarray, p], local: Float32[np.ndarray, "3 p"],
           normal: Float32[np.ndarray, "3 p"], footprint: Float32[np.ndarray, p]) -> Float32[np.ndarray, "3 p"]:
    """Linear color of every point.

    Args:
        which: material of each point.
        local, normal: the point and its normal in the frame of its solid; the pattern is projected along the axis
            nearest to the normal.
        footprint: size of a pixel on the surface in meters; patterns finer than it fade to their mean.
    """
    color = np.stack([linear(m.color) for m in materials], 1)
    color = np.take(color, which, axis=1)
    order = np.argsort(which, kind="stable")
    ends = np.searchsorted(which[order], np.arange(len(materials) + 1))
    for k, material in enumerate(materials):
        if material.pattern == "plain" or ends[k] == ends[k + 1]:
            continue
        points = order[ends[k]:ends[k + 1]]
        x, y, z = np.take(local, points, axis=1)
        nx, ny, nz = np.abs(np.take(normal, points, axis=1))
        up = (nz >= nx) & (nz >= ny)
        across = np.where(nx > ny, y, x)
        first, second = np.where(up, x, across), np.where(up, y, z)
        sharp = np.clip(1.6 - 1.6 * footprint[points] / min(material.scale), 0, 1)
        color[:, points] = PATTERNS[material.pattern](material, first, second, sharp)
    return np.clip(color, 0.0, 1.0)
