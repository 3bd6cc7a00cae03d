"""Keypoints of one frame from stored points, or from the peaks of stored heat maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float

from polyptych.errors import InputError

VISIBLE = 0.5
"""Height at which the peak of a heat map counts as a visible keypoint. A Gaussian of height 1 reaches it in the cell
nearest to its center, wherever that is, if its standard deviation is 0.6 cells or more."""


def points(stored: np.ndarray, path: Path, count: int, size: tuple[int, int]) -> Float[np.ndarray, "k 3"]:
    """x, y and visibility from an array (k 3) of them, in pixels of the image (h, w) = ``size``."""
    if stored.shape != (count, 3) or stored.dtype.kind not in "uif":
        raise InputError(path, f"{stored.dtype} of shape {stored.shape}",
                         f"numbers of shape ({count}, 3): x, y, visible", "store one row for every type")
    x, y, visible = stored.astype(np.float32).T
    if not np.isin(visible, (0, 1)).all():
        raise InputError(path, "a visibility other than 0 and 1", "0 or 1", "set it to 1 where the point is visible")
    height, width = size
    wrong = (visible == 1) & ~((x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5))  # NaN included
    if wrong.any():
        raise InputError(path, f"the visible point ({x[wrong][0]:g}, {y[wrong][0]:g})",
                         f"points inside the image of {height}x{width} pixels", "mark it as invisible, or rescale it")
    return np.stack([np.where(visible == 1, x, 0), np.where(visible == 1, y, 0), visible], -1)


def peaks(stored: np.ndarray, path: Path, count: int, size: tuple[int, int]) -> Float[np.ndarray, "k 3"]:
    """x, y and visibility from heat maps (k h w) of any resolution with values from 0 to 1: the center of the highest
    cell, visible if its value reaches :data:`VISIBLE`."""
    if stored.ndim != 3 or stored.shape[0] != count or stored.dtype.kind != "f" or not stored.size:
        raise InputError(path, f"{stored.dtype} of shape {stored.shape}",
                         f"floating point of shape ({count}, h, w)", "store one heat map for every type")
    if not (stored.min() >= 0 and stored.max() <= 1):  # NaN included
        raise InputError(path, f"values from {stored.min():g} to {stored.max():g}", "values from 0 to 1",
                         "scale the heat maps to a height of 1")
    rows, columns = stored.shape[1:]
    highest = stored.reshape(count, -1).argmax(1)
    visible = stored.reshape(count, -1).max(1) >= VISIBLE
    x = (highest % columns + 0.5) * size[1] / columns - 0.5
    y = (highest // columns + 0.5) * size[0] / rows - 0.5
    return (np.stack([x, y, np.ones(count)], -1) * visible[:, None]).astype(np.float32)
