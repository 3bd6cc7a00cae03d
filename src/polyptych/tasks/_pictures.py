"""Colors for pictures: a palette of distinct colors, bytes from numbers."""

from __future__ import annotations

from functools import cache

import numpy as np
from jaxtyping import Float, UInt8

from polyptych.types import LabelInfo

UNLABELLED = 128  # gray


def to_bytes(values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """[0, 1] to 0..255; what lies outside is clipped, NaN is 0."""
    return (np.nan_to_num(values).clip(0, 1) * 255 + 0.5).astype(np.uint8)


def class_colors(labels: LabelInfo) -> UInt8[np.ndarray, "k 3"]:
    """The colors of the dataset where it has them, otherwise :func:`distinct_colors`."""
    if labels.colors:
        return np.array(labels.colors, np.uint8)
    return distinct_colors(len(labels.classes))


@cache
def distinct_colors(count: int) -> UInt8[np.ndarray, "k 3"]:
    """``count`` colors as far apart as possible to the eye, the same ones every time.

    Greedy choice of the farthest candidate in OKLab (Ottosson 2020), where Euclidean distance follows
    perception, among colors of medium lightness and chroma; black, white and the gray of unlabelled pixels
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
    palette.flags.writeable = False  # it is shared by everyone who asks
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
