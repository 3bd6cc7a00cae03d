"""The camera of NYUv2, needed to derive normals if a layout has none."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from polyptych.errors import InputError
from polyptych.types import Intrinsics

# The color camera, into whose frame depth is projected, from the authors' toolbox; at 480x640.
_FX, _FY, _CX, _CY = 518.857901, 519.469611, 324.582449, 252.736166
# Rows and columns cut off at the top and at the left, by the size of what is left (polyptych.datasets.nyuv2).
_CUT = {(480, 640): (0, 0), (427, 561): (44, 40), (425, 560): (45, 40)}


def intrinsics(size: tuple[int, int]) -> Intrinsics:
    """Intrinsics for frames of ``size`` (h, w): full frames, or one of the two common crops. The toolbox's principal
    point may be counted from 1, which would rotate normals by 0.1 degrees.

    Raises:
        InputError: it is unknown how frames of this size were cropped and resized.
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
