"""NYU Depth v2: 1449 indoor frames with semantic segmentation, depth, surface normals and boundaries.

Source: Silberman, Hoiem, Kohli and Fergus, ECCV 2012
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from polyptych.data._contours import contours_across_void
from polyptych.data.preparation.derived import note
from polyptych.datasets._decoding import unit_vectors
from polyptych.datasets._layouts import Label, LayoutDataset
from polyptych.datasets._nyuv2.classes import COLORS, FORTY_TO_THIRTEEN, NAMES
from polyptych.datasets._nyuv2.layouts._base import CATALOG, LayoutName, NYUv2Layout
from polyptych.errors import InputError
from polyptych.types import LabelInfo, Sample, SampleInfo

_FULL = (480, 640)
# Rows and columns inside the white border. The toolbox has mask(45:471, 41:601) in MATLAB, which counts from 1 and
# includes the end.
_CROPS = {"toolbox": (slice(44, 471), slice(40, 601)), "gupta": (slice(45, 470), slice(40, 600))}


class NYUv2(LayoutDataset):
    """NYU Depth v2 with the official split: 795 images for training, 654 for testing.

    ``val`` is carved out of the training images in runs of neighboring frames, which show the same room
    (:meth:`~polyptych.datasets._nyuv2.layouts._base.NYUv2Layout.runs`).

    Boundaries come from the layout's boundary files if it has any; otherwise from the segmentation
    (:mod:`polyptych.data._contours`). With 13 classes they still separate the 40.
    """

    layouts = CATALOG
    layout: NYUv2Layout

    @dataclass(frozen=True, kw_only=True)
    class Config(LayoutDataset.Config):
        root: Path = Path("data/nyuv2")
        """Folder of the dataset."""
        layout: LayoutName = "auto"
        classes: Literal[13, 40, 41] = 40
        """Number of semantic classes; with 41, unlabeled pixels form a class of their own, background (ASTMT)."""
        crop: Literal["none", "toolbox", "gupta"] = "none"
        """Crop the white border of 480x640 frames: the toolbox's rows and columns leave 427x561, Gupta's 425x560, the
        size of the published NYUD_MT."""
        raw_depth: bool = False
        """Use the raw sensor depth, with its holes, in place of the inpainted depth (official layout only)."""

        def known_labels(self) -> dict[str, LabelInfo]:
            return {"semseg": LabelInfo(classes=NAMES[self.classes], colors=COLORS[self.classes]),
                    "depth": LabelInfo(unit="m"), "normals": LabelInfo(), "boundaries": LabelInfo()}

    config: Config

    def __init__(self, config: Config, *, split: str, tasks: tuple[str, ...]):
        super().__init__(config, split=split, tasks=tasks)
        height, width = self._cropped_size()
        self.protocol = "-".join([f"nyuv2-{config.classes}-{height}x{width}-{self.layout.component_name()}",
                                  *([config.crop] if config.crop in _CROPS else []),
                                  *(["raw"] if config.raw_depth else [])])

    def find_labels(self, tasks: tuple[str, ...]) -> dict[str, LabelInfo]:
        layout, classes = self.layout, self.config.classes
        labels = {
            "semseg": LabelInfo(classes=NAMES[classes], colors=COLORS[classes], note=layout.semseg_note),
            "depth": LabelInfo(unit="m", note="raw sensor depth, with holes" if self.config.raw_depth else ""),
            "normals": LabelInfo(note=note(layout.root / "normals") or layout.normals_note),
            "boundaries": LabelInfo(note="as stored in the dataset" if layout.files.get("boundaries") else
                                    "derived from the segmentation"),
        }
        return {task: info for task, info in labels.items() if layout.has(task)}

    def label(self, task: str, frame: str) -> Label:
        readers: dict[str, Callable[[str], Label]] = {
            "semseg": self._semseg, "depth": self._depth, "normals": self._normals, "boundaries": self._boundaries}
        return readers[task](frame)

    def read(self, index: int) -> Sample:
        return self._cropped(super().read(index))

    def _cropped_size(self) -> tuple[int, int]:
        size = self.layout.size(self.frames[0])
        if self.config.crop not in _CROPS:
            return size
        if size != _FULL:
            raise InputError("crop of nyuv2", f"'{self.config.crop}' with frames of {size[0]}x{size[1]}",
                             f"whole frames of {_FULL[0]}x{_FULL[1]}", "leave the crop out")
        rows, columns = _CROPS[self.config.crop]
        return rows.stop - rows.start, columns.stop - columns.start

    def _cropped(self, sample: Sample) -> Sample:
        if self.config.crop not in _CROPS:
            return sample
        if sample.info.native != _FULL:
            raise InputError(self.layout.path(sample.info.id, "image"), "{}x{} pixels".format(*sample.info.native),
                             f"{_FULL[0]}x{_FULL[1]} like the other frames", "copy the file again")
        window = (..., *_CROPS[self.config.crop])
        image, size = sample.image[window], self._cropped_size()
        return Sample(image, {task: target[window] for task, target in sample.target.items()},
                      {task: valid[window] for task, valid in sample.valid.items()},
                      SampleInfo(sample.info.id, size, size))

    def _semseg(self, frame: str) -> Label:
        ids, labeled = self.layout.semseg(frame)
        if self.config.classes == 41:
            ids, labeled = np.where(labeled, ids + 1, 0), np.ones_like(labeled)
        elif self.config.classes == 13 and 40 in self.layout.classes:
            ids = FORTY_TO_THIRTEEN[ids]
        return torch.from_numpy(ids).long(), torch.from_numpy(labeled)

    def _depth(self, frame: str) -> Label:
        meters = self.layout.raw_depth(frame) if self.config.raw_depth else self.layout.depth(frame)
        depth = torch.from_numpy(np.asarray(meters, np.float32))
        valid = depth > 0  # False for NaN
        return torch.where(valid, depth, 0), valid

    def _normals(self, frame: str) -> Label:
        return unit_vectors(self.layout.normals(frame))

    def _boundaries(self, frame: str) -> Label:
        if self.layout.files.get("boundaries"):
            edge = self.layout.boundaries(frame)
            valid = np.ones_like(edge)
        else:
            ids, labeled = self.layout.semseg(frame)
            edge, valid = contours_across_void(ids, labeled, reach=max(1, round(len(ids) / 60)))
        return torch.from_numpy(edge).float(), torch.from_numpy(valid)
