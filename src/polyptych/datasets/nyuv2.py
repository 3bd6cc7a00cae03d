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
from torch import Tensor

from polyptych.data._contours import contours_across_void
from polyptych.datasets._base import Dataset
from polyptych.datasets._nyuv2.classes import COLORS, FORTY_TO_THIRTEEN, NAMES
from polyptych.datasets._nyuv2.folder import FolderLayout
from polyptych.datasets._nyuv2.frames import FramesLayout
from polyptych.datasets._nyuv2.layout import Layout
from polyptych.datasets._nyuv2.mtan import MTANLayout
from polyptych.datasets._nyuv2.split import held_out
from polyptych.errors import InputError
from polyptych.types import LabelInfo, Sample, SampleInfo

_LAYOUTS: dict[str, type[Layout]] = {"folder": FolderLayout, "mtan": MTANLayout, "frames": FramesLayout}

Label = tuple[Tensor, Tensor]


class NYUv2(Dataset):
    """NYU Depth v2 with the official split: 795 images for training, 654 for testing.

    ``val`` is carved out of the training images in runs of neighboring frames, which show the same room; the
    rule is in :func:`polyptych.datasets._nyuv2.split.held_out` and gives the same images on every machine.

    Boundaries come from the layout's boundary files if it has any; otherwise from the segmentation
    (:mod:`polyptych.data._contours`). With 13 classes they still separate the 40.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        root: Path = Path("data/nyuv2")
        """Folder of the dataset."""
        classes: Literal[13, 40] = 40
        """Number of semantic classes."""
        layout: Literal["auto", "folder", "mtan", "frames"] = "auto"
        """How the files lie on disk: folder (NYUD_MT, 480x640), mtan (arrays of 288x384, 13 classes), frames
        (compressed frames); auto looks."""
        validation: float = 0.1
        """Share of the official training images that is set aside as val; 0 trains on all of them."""

    config: Config

    def __init__(self, config: Config, *, split: str, tasks: tuple[str, ...]):
        self.layout = _open(config)
        self.labels = _labels(self.layout, config.classes)
        super().__init__(config, split=split, tasks=tasks)
        self.frames = self._split_frames()
        self.layout.require(self.frames, self._kinds())
        height, width = self.layout.size(self.frames[0])
        layout = next(name for name, kind in _LAYOUTS.items() if kind is type(self.layout))
        self.protocol = f"nyuv2-{config.classes}-{height}x{width}-{layout}"
        self._readers: dict[str, Callable[[str], Label]] = {
            "semseg": self._semseg, "depth": self._depth, "normals": self._normals,
            "boundaries": self._boundaries}

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, index: int) -> Sample:
        frame = self.frames[index]
        image = self.layout.image(frame)
        size = (int(image.shape[1]), int(image.shape[2]))
        target, valid = {}, {}
        for task in self.tasks:
            target[task], valid[task] = self._readers[task](frame)
            if (got := tuple(valid[task].shape)) != size:
                raise InputError(self._label_path(frame, task), f"a label of {got[0]}x{got[1]} pixels",
                                 f"the size of the image, {size[0]}x{size[1]}", "resize the one or the other")
        return Sample(image, target, valid, SampleInfo(frame, size, size))

    def _split_frames(self) -> list[str]:
        where = f"{self.split} split of {self.layout.root}"
        frames = self.layout.frames("test" if self.split == "test" else "train")
        if self.split != "test":
            kept = held_out(frames, self.config.validation)
            frames = [frame for frame in frames if (frame in kept) == (self.split == "val")]
        if not frames:
            raise InputError(where, "no frames",
                             "at least one (val needs two training images and a validation share above 0)",
                             "check the dataset's lists of images")
        return frames

    def _kinds(self) -> list[str]:
        """Kinds of files that the tasks need."""
        return list(dict.fromkeys(["image", *(self._kind(task) for task in self.tasks)]))

    def _kind(self, task: str) -> str:
        return task if self.layout.has(task) else "semseg"  # only boundaries can be derived

    def _label_path(self, frame: str, task: str) -> Path:
        return self.layout.path(frame, self._kind(task))

    def _semseg(self, frame: str) -> Label:
        ids, labeled = self.layout.semseg(frame)
        if self.config.classes < self.layout.classes:
            ids = FORTY_TO_THIRTEEN[ids]
        return torch.from_numpy(ids).long(), torch.from_numpy(labeled)

    def _depth(self, frame: str) -> Label:
        depth = torch.from_numpy(np.asarray(self.layout.depth(frame), np.float32))
        valid = depth > 0  # False for NaN
        return torch.where(valid, depth, 0), valid

    def _normals(self, frame: str) -> Label:
        normals = self.layout.normals(frame)
        length = normals.square().sum(0).sqrt_()  # torch's vector_norm takes fifty times as long here
        valid = length > 0.1  # an 8-bit zero vector is not exactly zero
        return normals * (valid / length.clamp(min=0.1)), valid

    def _boundaries(self, frame: str) -> Label:
        if self.layout.has("boundaries"):
            edge = self.layout.boundaries(frame)
            valid = np.ones_like(edge)
        else:
            ids, labeled = self.layout.semseg(frame)
            edge, valid = contours_across_void(ids, labeled, reach=max(1, round(len(ids) / 60)))
        return torch.from_numpy(edge).float(), torch.from_numpy(valid)


def _labels(layout: Layout, classes: int) -> dict[str, LabelInfo]:
    """What the layout has labels for."""
    stored = layout.has("boundaries")
    origin = "as stored in the dataset" if stored else "derived from the segmentation"
    made_from = {"boundaries": "boundaries" if stored else "semseg"}
    labels = {
        "semseg": LabelInfo(classes=NAMES[classes], colors=COLORS[classes], note=layout.semseg_note),
        "depth": LabelInfo(unit="m"),
        "normals": LabelInfo(note=layout.normals_note),
        "boundaries": LabelInfo(note=origin),
    }
    return {task: info for task, info in labels.items() if layout.has(made_from.get(task, task))}


def _open(config: NYUv2.Config) -> Layout:
    root = Path(config.root)
    if not 0 <= config.validation < 1:
        raise InputError("validation of nyuv2", str(config.validation), "a share from 0 to below 1",
                         "0.1 sets a tenth of the training images aside")
    if not root.is_dir():
        raise InputError(f"root of nyuv2 ({root})", "no such folder", "the folder of the dataset",
                         "download NYUv2 or correct the path")
    name = config.layout if config.layout != "auto" else _detect(root)
    kind = _LAYOUTS[name]
    if not kind.matches(root):
        raise InputError(f"root of nyuv2 ({root})", f"a folder without {kind.looks_for}",
                         f"the layout '{name}'", "correct the path, or let --layout auto look")
    if config.classes > kind.classes:
        raise InputError("classes of nyuv2", f"{config.classes} with the layout '{name}'",
                         f"{kind.classes}, all that this layout distinguishes",
                         f"set classes to {kind.classes}")
    return kind(root)


def _detect(root: Path) -> str:
    found = [name for name, kind in _LAYOUTS.items() if kind.matches(root)]
    if found:
        return found[0]
    inside = [child for child in sorted(root.iterdir())
              if child.is_dir() and any(kind.matches(child) for kind in _LAYOUTS.values())]
    raise InputError(f"root of nyuv2 ({root})", "a folder of no known layout",
                     "; ".join(f"{kind.looks_for} ({name})" for name, kind in _LAYOUTS.items()),
                     f"did you mean {inside[0]}?" if inside else "correct the path")
