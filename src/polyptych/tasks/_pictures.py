"""Colors for pictures: a palette of distinct colors, conversion to bytes, legends; integers for 16-bit files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt16

from polyptych.types import LabelInfo

UNLABELLED = 128  # gray
HIGHEST_16 = 65535

RGB = tuple[int, int, int]

_NOTHING = re.compile(
    r"(?i)(?:[ /,_-]*(?:back[ _-]?ground|bg|null|none|nothing|void|empty|other|unknown|ignored?|outside|clutter|"
    r"no[ _-]?(?:label|data|class)|un-?(?:labell?ed|annotated|classified|defined)))+[ _]*")
_GRAYS = ((0, 0, 0), (72, 72, 72), (176, 176, 176))  # none is that of unlabeled pixels


@dataclass(frozen=True)
class Legend:
    """What colors mean: a swatch per name, or evenly spaced stops of a scale if ``continuous`` (stops without a name
    only have a color)."""

    entries: tuple[tuple[str, RGB], ...] = ()
    continuous: bool = False

    def occurring(self, areas: Int[np.ndarray, " k"] | None) -> Legend:
        """Only the entries that occur, the largest first; all of them if no areas are known."""
        return self if areas is None else Legend(tuple(self.entries[index] for index in by_area(areas)))


@dataclass(frozen=True)
class Stored:
    """A map as integers, and their meaning in words, which is written into the file."""

    values: UInt16[np.ndarray, "h w"]
    meaning: str


def stored(values: Float[np.ndarray, "h w"], meaning: str) -> Stored:
    """Integers from 0 to 65535, rounded; values outside are clipped, NaN becomes 0."""
    return Stored((np.nan_to_num(values.astype(np.float64)).clip(0, HIGHEST_16) + 0.5).astype(np.uint16), meaning)


def by_area(areas: Int[np.ndarray, " k"]) -> list[int]:
    """The ids of the classes that occur, the largest area first."""
    return [int(index) for index in np.argsort(-areas, kind="stable") if areas[index]]


def class_legend(labels: LabelInfo) -> Legend:
    """A swatch for each class."""
    return Legend(tuple(zip(labels.classes, map(rgb, class_colors(labels)), strict=True)))


def scale_legend(names: Sequence[str], color: Callable[[Float[np.ndarray, " n"]], UInt8[np.ndarray, "n 3"]]) -> Legend:
    """A continuous scale: ``color`` of evenly spaced shares from 0 to 1, with the names spread evenly over them."""
    between = 1 if len(names) > 5 else 4
    stops = color(np.linspace(0, 1, between * (len(names) - 1) + 1))
    return Legend(tuple((names[i // between] if i % between == 0 else "", rgb(stop)) for i, stop in enumerate(stops)),
                  continuous=True)


def viridis(share: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """From dark blue (0) to yellow (1)."""
    from matplotlib import colormaps  # slow to import, and training paints nothing

    return colormaps["viridis"](to_bytes(share), bytes=True)[..., :3].copy()


def gray(share: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape 3"]:
    """From black (0) to white (1)."""
    return to_bytes(share)[..., None].repeat(3, -1)


def rgb(color: UInt8[np.ndarray, 3]) -> RGB:
    """Three plain numbers."""
    red, green, blue = (int(value) for value in color)
    return red, green, blue


def to_bytes(values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """[0, 1] to 0..255; values outside are clipped, NaN becomes 0."""
    return (np.nan_to_num(values).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def class_colors(labels: LabelInfo) -> UInt8[np.ndarray, "k 3"]:
    """The dataset's colors if it has any; otherwise black or gray for classes that mean nothing in particular
    (background, void), and :func:`distinct_colors` for all others."""
    if labels.colors:
        return np.array(labels.colors, np.uint8)
    nothing = [bool(_NOTHING.fullmatch(name)) for name in labels.classes]
    grays, others = iter(_GRAYS[:1] + _GRAYS[1:] * len(nothing)), iter(distinct_colors(nothing.count(False)))
    return np.array([next(grays) if empty else next(others) for empty in nothing], np.uint8).reshape(-1, 3)


@cache
def distinct_colors(count: int) -> UInt8[np.ndarray, "k 3"]:
    """``count`` colors as far apart as possible to the eye, the same ones every time.

    Greedy choice of the farthest candidate in OKLab (Ottosson 2020), where Euclidean distance follows
    perception, among colors of medium lightness and chroma; black, white and the gray of unlabeled pixels
    are avoided.
    """
    levels = np.linspace(0, 255, 18).round()
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lab = _oklab(candidates)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    pleasant = (lab[:, 0] > 0.42) & (lab[:, 0] < 0.9) & (chroma > 0.05) & (chroma < 0.2)
    candidates, lab = candidates[pleasant], lab[pleasant]
    avoided = _oklab(np.array([[0, 0, 0], [255, 255, 255], [UNLABELLED] * 3], float))
    distance = np.linalg.norm(lab[:, None] - avoided, axis=-1).min(1)
    chosen = []
    for _ in range(count):
        farthest = int(distance.argmax())
        chosen.append(candidates[farthest])
        distance = np.minimum(distance, np.linalg.norm(lab - lab[farthest], axis=-1))
    palette = np.array(chosen).reshape(count, 3).astype(np.uint8)
    palette.flags.writeable = False  # all callers share it
    return palette


def _oklab(rgb: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    value = rgb / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    to_cones = np.array([[0.4122214708, 0.5363325363, 0.0514459929],
                         [0.2119034982, 0.6806995451, 0.1073969566],
                         [0.0883024619, 0.2817188376, 0.6299787005]])
    to_lab = np.array([[0.2104542553, 0.7936177850, -0.0040720468],
                       [1.9779984951, -2.4285922050, 0.4505937099],
                       [0.0259040371, 0.7827717662, -0.8086757660]])
    return np.cbrt(linear @ to_cones.T) @ to_lab.T
