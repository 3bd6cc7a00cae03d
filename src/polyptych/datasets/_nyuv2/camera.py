"""The camera of NYUv2, from which normals follow where a layout has none."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from polyptych.data.preparation.normals import Intrinsics
from polyptych.errors import InputError

# The color camera as the authors' toolbox has it, to whose frame depth is projected, at 480x640.
_FX, _FY, _CX, _CY = 518.857901, 519.469611, 324.582449, 252.736166
# Rows and columns cut off at the top and at the left, by the size of what is left (polyptych.datasets.nyuv2).
_CUT = {(480, 640): (0, 0), (427, 561): (44, 40), (425, 560): (45, 40)}


def intrinsics(size: tuple[int, int]) -> Intrinsics:
    """Of frames of ``size`` (h, w): whole ones, or cut by one of the two crops in use. The toolbox's principal point
    may be counted from 1, which would turn normals by 0.1 degrees.

    Raises:
        InputError: it is not known how frames of this size were cut and resized.
    """
    if size not in _CUT:
        sizes = ", ".join(f"{height}x{width}" for height, width in _CUT)
        raise InputError("camera of nyuv2", f"frames of {size[0]}x{size[1]}", f"one of {sizes}",
                         "give --intrinsics FX FY CX CY, or --no-normals")
    top, left = _CUT[size]
    return Intrinsics(_FX, _FY, _CX - left, _CY - top)


def frames_as_stored(config: Any) -> Any:
    """The options that read whole frames and their inpainted depth."""
    return dataclasses.replace(config, crop="none", raw_depth=False)


def place(dataset: Any, frame: str) -> Path:
    """Where the layout looks for the normals of a frame."""
    path: Path = dataset.layout.expected(frame, "normals")
    return path
