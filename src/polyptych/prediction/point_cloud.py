"""Point clouds from depth, and PLY files for other programs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from polyptych.errors import InputError
from polyptych.types import Intrinsics

FIELD_OF_VIEW = 60.0
"""Horizontal field of view, in degrees, of a camera that nobody described."""


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Points in the camera's frame (x right, y down, z forward), in meters, row by row of the image.

    Attributes:
        positions: (n 3).
        colors: (n 3) RGB.
        normals: (n 3) unit vectors, or None.
    """

    positions: Float[np.ndarray, "n 3"]
    colors: UInt8[np.ndarray, "n 3"]
    normals: Float[np.ndarray, "n 3"] | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def save(self, path: Path | str) -> Path:
        """Write a binary PLY file (little endian): x y z, nx ny nz where there are normals, red green blue."""
        columns = [(axis, "<f4", self.positions[:, i]) for i, axis in enumerate("xyz")]
        if self.normals is not None:
            columns += [(f"n{axis}", "<f4", self.normals[:, i]) for i, axis in enumerate("xyz")]
        columns += [(color, "u1", self.colors[:, i]) for i, color in enumerate(("red", "green", "blue"))]
        vertices = np.empty(len(self), [(name, kind) for name, kind, _ in columns])
        for name, _, values in columns:
            vertices[name] = values
        names = {"<f4": "float", "u1": "uchar"}
        header = ["ply", "format binary_little_endian 1.0", "comment meters, x right, y down, z forward",
                  f"element vertex {len(self)}", *(f"property {names[kind]} {name}" for name, kind, _ in columns),
                  "end_header", ""]
        path = Path(path)
        with open(path, "wb") as file:
            file.write("\n".join(header).encode())
            file.write(vertices.view(np.uint8).data)  # tofile() does not report a full disk
        return path


def find_camera(size: tuple[int, int], intrinsics: tuple[float, float, float, float] | None = None,
                field_of_view: float | None = None) -> Intrinsics:
    """The camera of an image of ``size`` (h, w); see :meth:`Scene.points`.

    Raises:
        InputError: both are given, or one is out of range.
    """
    if intrinsics is not None:
        if field_of_view is not None:
            raise InputError("--field-of-view", "--intrinsics as well", "one of the two", "leave one out")
        if not all(map(math.isfinite, intrinsics)) or min(intrinsics[:2]) <= 0:
            raise InputError("--intrinsics", " ".join(f"{value:g}" for value in intrinsics),
                             "FX FY CX CY in pixels, FX and FY above 0",
                             "take them from the camera's calibration, or leave them out for an "
                             "assumed field of view")
        return Intrinsics(*intrinsics)
    angle = FIELD_OF_VIEW if field_of_view is None else field_of_view
    if not 0 < angle < 180:
        raise InputError("--field-of-view", f"{angle:g}", "degrees above 0 and below 180", "60 is usual")
    height, width = size
    focal = width / 2 / math.tan(math.radians(angle) / 2)
    return Intrinsics(focal, focal, (width - 1) / 2, (height - 1) / 2)


def unproject(depth: Float[np.ndarray, "h w"], camera: Intrinsics, image: UInt8[np.ndarray, "h w 3"],
              normals: Float[np.ndarray, "h w 3"] | None = None) -> PointCloud:
    """Every pixel as a point: ((x - cx) z / fx, (y - cy) z / fy, z), z the depth along the optical axis in meters."""
    height, width = depth.shape
    x = (np.arange(width) - camera.cx) / camera.fx
    y = (np.arange(height) - camera.cy) / camera.fy
    points = np.stack([x * depth, y[:, None] * depth, depth], -1).astype(np.float32)
    return PointCloud(points.reshape(-1, 3), image.reshape(-1, 3), None if normals is None else normals.reshape(-1, 3))
