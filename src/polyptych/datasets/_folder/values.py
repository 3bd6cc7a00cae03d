"""Dense labels with one number per pixel: depth, inverse depth, detector responses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from polyptych.data.arrays import flat, is_any
from polyptych.datasets._folder.labels import FileLabels, Label
from polyptych.errors import InputError
from polyptych.types import LabelInfo

FARTHEST = 1000.0  # meters, the largest depth that the task allows


@dataclass(frozen=True, kw_only=True)
class ValueMaps(FileLabels):
    """Value = scale * stored value + offset. NaN and infinity mean no label."""

    scale: float = 1.0
    """Multiplies the stored value."""
    offset: float = 0.0
    """Added after scaling."""
    invalid: tuple[float, ...] = ()
    """Stored values that mean no label."""

    lowest: ClassVar[float] = -math.inf
    highest: ClassVar[float] = math.inf

    def info(self, root: Path, where: str) -> LabelInfo:
        if not (math.isfinite(self.scale) and self.scale and math.isfinite(self.offset)):
            raise InputError(f"{where}.scale", f"{self.scale:g} (offset {self.offset:g})",
                             "finite numbers, scale not 0", "set scale to 1 if none is needed")
        return LabelInfo(note=self.note)

    def parse(self, array: np.ndarray, path: Path, where: str) -> Label:
        value, labeled = self.scaled(array, path)
        wrong = labeled & ~((value >= self.lowest) & (value <= self.highest))
        if wrong.any():
            raise InputError(path, f"a value of {value[wrong][0]:g} ({int(wrong.sum())} such pixels)",
                             f"values from {self.lowest:g} to {self.highest:g}",
                             f"check scale and offset of {where}, or list the stored value in its `invalid`")
        return torch.from_numpy(value.astype(np.float32)), torch.from_numpy(labeled)

    def scaled(self, array: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """Values (float64, 0 where there is no label) and the mask of labeled pixels."""
        stored = flat(array, path, "store one value for each pixel")
        labeled = np.isfinite(stored) & ~is_any(stored, self.invalid)
        value = np.where(labeled, stored, 0).astype(np.float64) * self.scale + self.offset
        return np.where(labeled, value, 0), labeled


@dataclass(frozen=True, kw_only=True)
class InverseDepthMaps(ValueMaps):
    """Inverse depth or disparity in a unit of its own; 0 is infinitely far, and a label unless ``invalid`` names it."""

    unit: str = ""
    """Unit shown in tables: px for disparities in pixels."""

    lowest: ClassVar[float] = 0.0

    def info(self, root: Path, where: str) -> LabelInfo:
        return LabelInfo(unit=self.unit, note=super().info(root, where).note)


@dataclass(frozen=True, kw_only=True)
class ResponseMaps(ValueMaps):
    """Detector responses, from -1 (none) to 1 (the strongest)."""

    lowest: ClassVar[float] = -1.0
    highest: ClassVar[float] = 1.0


@dataclass(frozen=True, kw_only=True)
class DepthMaps(ValueMaps):
    """Depth = scale * stored value + offset, converted from ``unit`` to meters."""

    unit: Literal["m", "mm", "disparity"] = "m"
    """Unit of scale * value + offset; disparity is in pixels and needs baseline and focal."""
    baseline: float = 0.0
    """Distance between the two cameras in meters, for disparity."""
    focal: float = 0.0
    """Focal length in pixels, for disparity."""
    invalid: tuple[float, ...] = (0.0,)
    """Stored values that mean no label."""
    maximum: float = FARTHEST
    """Depth in meters beyond which there is no label."""

    def info(self, root: Path, where: str) -> LabelInfo:
        if self.unit == "disparity":
            for name in ("baseline", "focal"):
                if not 0 < getattr(self, name) < math.inf:
                    raise InputError(f"{where}.{name}", f"{getattr(self, name):g}", "a number above 0 for disparity",
                                     "take it from the calibration of the cameras")
        if not 0 < self.maximum <= FARTHEST:
            raise InputError(f"{where}.maximum", f"{self.maximum:g}", f"meters, above 0 and at most {FARTHEST:g}",
                             "choose a value in this range")
        return LabelInfo(unit="m", note=super().info(root, where).note)

    def parse(self, array: np.ndarray, path: Path, where: str) -> Label:
        value, labeled = self.scaled(array, path)
        if self.unit == "disparity":
            labeled = labeled & (value != 0)  # 0 is infinitely far
            value = self.baseline * self.focal / np.where(labeled, value, 1)
        elif self.unit == "mm":
            value = value / 1000
        wrong = labeled & ~((value > 0) & ((value <= FARTHEST) | (self.maximum < FARTHEST)))
        if wrong.any():
            do = f"check unit, scale and offset of {where}, or list the stored value in its `invalid`"
            if self.unit == "m" and self.scale == 1 and array.dtype.kind in "iu":
                do = f"set unit = \"mm\" if the files hold millimeters; otherwise {do}"
            raise InputError(path, f"a depth of {value[wrong][0]:g} m ({int(wrong.sum())} such pixels)",
                             f"depth above 0 and at most {FARTHEST:g} m", do)
        valid = labeled & (value <= self.maximum)
        return torch.from_numpy(np.where(valid, value, 0).astype(np.float32)), torch.from_numpy(valid)
