"""Labels derived from other labels: ``from = "semseg"`` in a task's table, computed when a sample is read.

A derived label is never known where its source is not, so its mask is that of the source or smaller.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from polyptych.data._contours import contours_across_void
from polyptych.data.arrays import is_any
from polyptych.data.preparation.normals import PlaneFit, normals_from_depth
from polyptych.datasets._folder.labels import FileLabels, Label, Labels, Source
from polyptych.errors import InputError, nearest
from polyptych.types import Intrinsics, LabelInfo


@dataclass(frozen=True, kw_only=True)
class DerivedLabels(Labels):
    """A table with ``from = "NAME"``, where NAME is another task of the file."""

    sources: ClassVar[tuple[str, ...]]
    """Kinds of tasks that these labels can be derived from."""

    def info(self, root: Path, where: str) -> LabelInfo:
        return LabelInfo(note=self.note)

    def open(self, root: Path, where: str) -> Source:
        raise TypeError("derived labels are opened with their source")

    def derive(self, source: Source, info: LabelInfo, where: str) -> Source:
        """Derive the labels from an opened source.

        Args:
            info: label information of the source.
            where: the place of the table, for messages.

        Raises:
            InputError: options do not fit the source.
        """
        self.check(info, where)
        # Labels without an image and doubts about files are reported once, for the source
        return replace(source, read=Deriving(self, source, info), ids=(), doubts=())

    def check(self, info: LabelInfo, where: str) -> None:
        """Refuse options that do not fit the source."""

    @abstractmethod
    def compute(self, target: np.ndarray, valid: np.ndarray, info: LabelInfo) -> tuple[np.ndarray, np.ndarray]:
        """Compute the label and its mask from those of the source."""


@dataclass(frozen=True)
class Deriving:
    """Reads a sample of the source and derives the label."""

    labels: DerivedLabels
    source: Source
    info: LabelInfo

    def __call__(self, sample: str, size: tuple[int, int]) -> Label:
        target, valid = self.source.read(sample, size)
        derived, known = self.labels.compute(target.numpy(), valid.numpy(), self.info)
        return torch.from_numpy(derived), torch.from_numpy(known)


@dataclass(frozen=True, kw_only=True)
class ClassBoundaries(DerivedLabels):
    """Boundaries where the class changes. Across thin unlabeled seams, which annotators leave between objects, there is
    one contour in the middle; larger unlabeled areas and their rims have no label."""

    seam: int = 0
    """Widest unlabeled seam that is bridged, in pixels; 0 takes 1/30 of the height."""

    sources: ClassVar[tuple[str, ...]] = ("semseg", "parts")

    def info(self, root: Path, where: str) -> LabelInfo:
        _check_seam(self.seam, where)
        return super().info(root, where)

    def compute(self, target: np.ndarray, valid: np.ndarray, info: LabelInfo) -> tuple[np.ndarray, np.ndarray]:
        return _boundaries(target, valid, self.seam)


@dataclass(frozen=True, kw_only=True)
class InstanceBoundaries(FileLabels):
    """Boundaries where the instance changes: ``from = "instances"`` and files of ids, of any number of bits or as
    colors (each color an instance)."""

    ignore: tuple[float, ...] = ()
    """Stored numbers that mean no label; the background is an instance like the others."""
    seam: int = 0
    """Widest unlabeled seam that is bridged, in pixels; 0 takes 1/30 of the height."""

    def info(self, root: Path, where: str) -> LabelInfo:
        _check_seam(self.seam, where)
        return LabelInfo(note=self.note)

    def parse(self, array: np.ndarray, path: Path, where: str) -> Label:
        if array.ndim == 3 and array.shape[-1] in (3, 4) and array.dtype == np.uint8:
            red, green, blue = (array[..., channel].astype(np.int64) for channel in range(3))
            array = red + 256 * green + 65536 * blue  # the id that COCO gives to a color
        if array.ndim != 2 or array.dtype.kind not in "biu":
            raise InputError(path, f"{array.dtype} of shape {array.shape}", "whole numbers (h, w) or colors (h, w, 3)",
                             "check `files`")
        edge, known = _boundaries(array, ~is_any(array, self.ignore), self.seam)
        return torch.from_numpy(edge), torch.from_numpy(known)


@dataclass(frozen=True, kw_only=True)
class ClassSaliency(DerivedLabels):
    """Pixels of the given classes are salient."""

    classes: tuple[str, ...]
    """Classes of the source that are salient."""

    sources: ClassVar[tuple[str, ...]] = ("semseg", "parts")

    def check(self, info: LabelInfo, where: str) -> None:
        for name in self.classes:
            if name not in info.classes:
                raise InputError(f"{where}.classes", repr(name), nearest(name, info.classes), "use one of these names")
        if not self.classes:
            raise InputError(f"{where}.classes", "none", "at least one class of the source", "name the salient classes")

    def compute(self, target: np.ndarray, valid: np.ndarray, info: LabelInfo) -> tuple[np.ndarray, np.ndarray]:
        salient = np.isin(target, [info.classes.index(name) for name in self.classes])
        return (salient & valid).astype(np.float32), valid


@dataclass(frozen=True, kw_only=True)
class DepthNormals(DerivedLabels):
    """Normals of planes fitted to depth around every pixel (:mod:`polyptych.data.preparation.normals`); no label where
    depth is unknown or too few pixels agree. Slow for large images: train with ``--loading.cache``."""

    focal: tuple[float, float] = (0.0, 0.0)
    """fx and fy of the camera, in pixels of the depth maps."""
    center: tuple[float, float] = (-1.0, -1.0)
    """Principal point cx and cy, where the optical axis meets the picture; by default its center."""
    field_of_view: float = 0.0
    """Horizontal field of view in degrees, in place of focal."""
    window: int = 21
    """Side of the square in which a plane is fitted, in pixels; 21 suits 480x640."""

    sources: ClassVar[tuple[str, ...]] = ("depth",)

    def info(self, root: Path, where: str) -> LabelInfo:
        if (min(self.focal) > 0) == (0 < self.field_of_view < 180):
            raise InputError(f"{where}.focal", f"{list(self.focal)} and a field of view of {self.field_of_view:g}",
                             "either focal = [fx, fy] in pixels or field_of_view in degrees",
                             "take it from the calibration of the camera")
        if self.window < 3 or self.window % 2 == 0:
            raise InputError(f"{where}.window", str(self.window), "an odd number, 3 or more", "choose one, such as 21")
        return LabelInfo(note=self.note or "derived from depth; not the normals of published tables")

    def compute(self, target: np.ndarray, valid: np.ndarray, info: LabelInfo) -> tuple[np.ndarray, np.ndarray]:
        height, width = target.shape
        fx, fy = self.focal
        if self.field_of_view:
            fx = fy = width / 2 / math.tan(math.radians(self.field_of_view) / 2)
        cx, cy = self.center if min(self.center) >= 0 else ((width - 1) / 2, (height - 1) / 2)
        fit = PlaneFit(window=self.window, stride=2 if self.window > 9 else 1)
        return normals_from_depth(target, valid, Intrinsics(fx, fy, cx, cy), fit)


DERIVED: Mapping[str, type[DerivedLabels]] = {"boundaries": ClassBoundaries, "saliency": ClassSaliency,
                                              "normals": DepthNormals}
"""Derived labels, by kind of task."""

FROM_INSTANCES: Mapping[str, type[FileLabels]] = {"boundaries": InstanceBoundaries}
"""Labels that ``from = "instances"`` derives from files of instance ids, by kind of task."""


def _check_seam(seam: int, where: str) -> None:
    if seam < 0:
        raise InputError(f"{where}.seam", str(seam), "pixels, 0 or more", "use 0 for the default")


def _boundaries(labels: np.ndarray, labeled: np.ndarray, seam: int) -> tuple[np.ndarray, np.ndarray]:
    reach = -(-seam // 2) or max(1, round(len(labels) / 60))
    edge, known = contours_across_void(labels, labeled, reach)
    return (edge & known).astype(np.float32), known
