"""The camera of an image. Apart from what computes with it, which imports a compiler."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera: (X, Y, Z) is seen at (fx X/Z + cx, fy Y/Z + cy) in pixels; centers are whole numbers."""

    fx: float
    fy: float
    cx: float
    cy: float
