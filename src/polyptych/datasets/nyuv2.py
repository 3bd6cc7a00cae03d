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
from polyptych.data.preparation.derived import note
from polyptych.datasets._base import Dataset
from polyptych.datasets._nyuv2.adashare import AdaShareLayout
from polyptych.datasets._nyuv2.classes import COLORS, FORTY_TO_THIRTEEN, NAMES
from polyptych.datasets._nyuv2.folder import ASTMTLayout, FolderLayout, InvPTLayout, SurveyLayout
from polyptych.datasets._nyuv2.frames import FramesLayout
from polyptych.datasets._nyuv2.layout import Layout
from polyptych.datasets._nyuv2.mtan import MTANLayout
from polyptych.datasets._nyuv2.official import OfficialLayout
from polyptych.datasets._nyuv2.split import held_out
from polyptych.errors import InputError
from polyptych.types import LabelInfo, Sample, SampleInfo

# In the order in which `auto` looks.
_LAYOUTS: dict[str, type[Layout]] = {
    "folder": FolderLayout, "mtan": MTANLayout, "frames": FramesLayout, "official": OfficialLayout,
    "adashare": AdaShareLayout, "astmt": ASTMTLayout, "survey": SurveyLayout, "invpt": InvPTLayout}

_FULL = (480, 640)
# Rows and columns that lie inside the white border. The toolbox says mask(45:471, 41:601) in MATLAB, which counts from
# 1 and includes the last one.
_CROPS = {"toolbox": (slice(44, 471), slice(40, 601)), "gupta": (slice(45, 470), slice(40, 600))}

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
        classes: Literal[13, 40, 41] = 40
        """Number of semantic classes; with 41, unlabeled pixels are a class of their own, background (ASTMT)."""
        layout: Literal["auto", "folder", "astmt", "survey", "invpt", "mtan", "official", "adashare", "frames"] = "auto"
        """How the files lie on disk: folder (NYUD_MT of any packing; astmt, survey and invpt insist on one), mtan
        (arrays of 288x384, 13 classes), official (the .mat files of the authors), adashare, frames (compressed
        frames); auto looks."""
        crop: Literal["none", "toolbox", "gupta"] = "none"
        """Cut the white border off frames of 480x640: the toolbox's rows and columns leave 427x561, Gupta's
        425x560, which is the size of the published NYUD_MT."""
        raw_depth: bool = False
        """Use the depth of the sensor, with its holes, instead of the in-painted one (official only)."""
        validation: float = 0.1
        """Share of the official training images that is set aside as val; 0 trains on all of them."""

    config: Config

    def __init__(self, config: Config, *, split: str, tasks: tuple[str, ...]):
        self.layout = _open(config)
        self.labels = _labels(self.layout, config)
        super().__init__(config, split=split, tasks=tasks)
        self.frames = self._split_frames()
        self.layout.require(self.frames, self._kinds())
        height, width = self._cropped_size()
        layout = next(name for name, kind in _LAYOUTS.items() if kind is type(self.layout))
        self.protocol = "-".join([f"nyuv2-{config.classes}-{height}x{width}-{layout}",
                                  *([config.crop] if config.crop in _CROPS else []),
                                  *(["raw"] if config.raw_depth else [])])
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
        return self._cropped(Sample(image, target, valid, SampleInfo(frame, size, size)))

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
        if self.config.raw_depth and task == "depth":
            return "raw_depth"
        return task if self.layout.has(task) else "semseg"  # only boundaries can be derived

    def _label_path(self, frame: str, task: str) -> Path:
        return self.layout.path(frame, self._kind(task))

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


def _labels(layout: Layout, config: NYUv2.Config) -> dict[str, LabelInfo]:
    """What the layout has labels for."""
    stored = layout.has("boundaries")
    origin = "as stored in the dataset" if stored else "derived from the segmentation"
    made_from = {"boundaries": "boundaries" if stored else "semseg"}
    labels = {
        "semseg": LabelInfo(classes=NAMES[config.classes], colors=COLORS[config.classes], note=layout.semseg_note),
        "depth": LabelInfo(unit="m", note="of the sensor, with holes" if config.raw_depth else ""),
        "normals": LabelInfo(note=note(layout.root / "normals") or layout.normals_note),
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
    if config.classes not in kind.classes:
        raise InputError("classes of nyuv2", f"{config.classes} with the layout '{name}'",
                         f"{' or '.join(map(str, kind.classes))}, all that this layout distinguishes",
                         f"set classes to {kind.classes[0]}")
    layout = kind(root)
    if config.raw_depth and not layout.has("raw_depth"):
        raise InputError("raw_depth of nyuv2", f"the layout '{name}' of {root}, which has none",
                         "the layout 'official' with the variable 'rawDepths'", "leave it out")
    return layout


def _detect(root: Path) -> str:
    found = [name for name, kind in _LAYOUTS.items() if kind.matches(root)]
    if found:
        return found[0]
    inside = [child for child in sorted(root.iterdir())
              if child.is_dir() and any(kind.matches(child) for kind in _LAYOUTS.values())]
    raise InputError(f"root of nyuv2 ({root})", "a folder of no known layout",
                     "; ".join(f"{kind.looks_for} ({name})" for name, kind in _LAYOUTS.items()),
                     f"did you mean {inside[0]}?" if inside else "correct the path")
