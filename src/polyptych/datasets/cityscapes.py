"""Cityscapes: street scenes with semantic segmentation and depth from stereo.

Source: Cordts et al., CVPR 2016, arXiv 1604.01685
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from polyptych.datasets._base import Dataset
from polyptych.datasets._cityscapes.classes import COLORS, NAMES
from polyptych.datasets._cityscapes.layout import Layout
from polyptych.datasets._cityscapes.mtan import MTANLayout
from polyptych.datasets._cityscapes.official import OfficialLayout
from polyptych.datasets._holdout import hold_out
from polyptych.errors import InputError
from polyptych.types import LabelInfo, Sample, SampleInfo

_LAYOUTS: dict[str, type[Layout]] = {"official": OfficialLayout, "mtan": MTANLayout}


class Cityscapes(Dataset):
    """Cityscapes with its finely labeled images: 2975 official training images, 500 official validation images.

    **Our** ``test`` **is the official** ``val``: the labels of the official test images are dummies, and all
    published multi-task numbers are on ``val``. The protocol id says so (``official_val``; the ``mtan`` layout
    has nothing else). Our ``val`` is carved out of the official training images: whole cities, as the official
    split has it, or blocks of 40 consecutive frames where the files do not tell the city
    (:mod:`polyptych.datasets._holdout`).

    Tasks: ``semseg``; ``depth`` in meters (official layout only; no label where the disparity is unknown or
    zero, or the depth beyond 1 km); ``inverse_depth`` as MTAN has it (a fraction, larger is nearer) or as
    disparity in pixels.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        root: Path = Path("data/cityscapes")
        """Folder of the dataset."""
        classes: Literal[19, 7, 2] = 19
        """Number of semantic classes: the official 19, their 7 categories, or what moves against the rest."""
        layout: Literal["auto", "official", "mtan"] = "auto"
        """How the files lie on disk: official (the unpacked archives), mtan (arrays of 128x256 or 256x512);
        auto looks."""
        inverse_depth: Literal["fraction", "pixels"] = "fraction"
        """Inverse depth as the 16-bit code of the disparity / 65535 (MTAN), or in pixels at the official width
        (official layout only)."""
        validation: float = 0.1
        """Share of the official training images that is set aside as val; 0 trains on all of them."""

    config: Config

    def __init__(self, config: Config, *, split: str, tasks: tuple[str, ...]):
        self.layout = _open(config, tasks)
        self.labels = _labels(self.layout, config, tasks)
        super().__init__(config, split=split, tasks=tasks)
        self.frames = self._split_frames()
        self.layout.require(self.frames, self.tasks)
        height, width = self.layout.size(self.frames[0])
        self.protocol = f"cityscapes-{config.classes}-{height}x{width}-{self.layout.tested_on}"
        if config.inverse_depth == "pixels":
            self.protocol += "-px"

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, index: int) -> Sample:
        frame = self.frames[index]
        image = self.layout.image(frame)
        size = (int(image.shape[1]), int(image.shape[2]))
        readers = {"semseg": self.layout.semseg, "depth": self.layout.depth,
                   "inverse_depth": lambda frame: self.layout.inverse_depth(frame, self.config.inverse_depth)}
        target, valid = {}, {}
        for task in self.tasks:
            values, known = readers[task](frame)
            if values.shape != size:
                raise InputError(self.layout.path(frame, self.layout.kinds[task][0]),
                                 f"a label of {values.shape[0]}x{values.shape[1]} pixels",
                                 f"the size of the image, {size[0]}x{size[1]}", "resize the one or the other")
            label = torch.from_numpy(values)
            target[task] = label if label.is_floating_point() else label.long()
            valid[task] = torch.from_numpy(known)
        return Sample(image, target, valid, SampleInfo(frame, size, size))

    def _split_frames(self) -> list[str]:
        frames = self.layout.frames("val" if self.split == "test" else "train")
        if self.split != "test":
            kept = hold_out(self.layout.runs(frames), self.config.validation)
            frames = [frame for frame in frames if (frame in kept) == (self.split == "val")]
        if not frames:
            raise InputError(f"{self.split} split of {self.layout.root}", "no frames",
                             "at least one (val needs two training images and a validation share above 0)",
                             "check that the folders of the official splits train and val are complete")
        return frames


def _labels(layout: Layout, config: Cityscapes.Config, tasks: tuple[str, ...]) -> dict[str, LabelInfo]:
    """What there are files for, and what is asked for, so that the files that are missing can be named."""
    pixels = config.inverse_depth == "pixels"
    labels = {
        "semseg": LabelInfo(classes=NAMES[config.classes], colors=COLORS[config.classes],
                            note=layout.semseg_note),
        "depth": LabelInfo(unit="m", note="from stereo; no label where the disparity is unknown or zero, or "
                                          "beyond 1 km"),
        "inverse_depth": LabelInfo(
            unit="px" if pixels else "",
            note="disparity at the official width of 2048; 0 is infinitely far" if pixels else
            "16-bit code of the disparity / 65535; 1/65535 is infinitely far and dominates rel"),
    }
    return {task: info for task, info in labels.items()
            if layout.has(task) or (task in tasks and task in layout.kinds)}


def _open(config: Cityscapes.Config, tasks: tuple[str, ...]) -> Layout:
    root = Path(config.root)
    where = f"root of cityscapes ({root})"
    if not 0 <= config.validation < 1:
        raise InputError("validation of cityscapes", str(config.validation), "a share from 0 to below 1",
                         "0.1 sets about a tenth of the training images aside")
    if not root.is_dir():
        raise InputError(where, "no such folder", "the folder of the dataset",
                         "download Cityscapes or correct the path")
    name = config.layout if config.layout != "auto" else _detect(root, where)
    kind = _LAYOUTS[name]
    if not kind.matches(root):
        raise InputError(where, f"a folder without {kind.looks_for}", f"the layout '{name}'",
                         "correct the path, or let --dataset.layout auto look")
    if kind is MTANLayout:
        _check_mtan(config, root, tasks)
    return kind(root, config.classes)


def _check_mtan(config: Cityscapes.Config, root: Path, tasks: tuple[str, ...]) -> None:
    """Refuse what only the official layout can give."""
    has = MTANLayout.classes_in(root)
    if "semseg" in tasks and has and config.classes not in has:
        raise InputError("classes of cityscapes", f"{config.classes}, for which {root} has no label folder",
                         f"one of {', '.join(map(str, has))}", f"set classes to {has[0]}")
    if config.inverse_depth == "pixels":
        raise InputError("inverse_depth of cityscapes", "'pixels' with the layout 'mtan'", "'fraction'",
                         "leave the option out, or use the official files")
    if "depth" in tasks:
        raise InputError("task 'depth'", "cityscapes in the layout 'mtan', which has no metric depth",
                         "the task inverse_depth", "replace depth by inverse_depth, or use the official files")


def _detect(root: Path, where: str) -> str:
    found = [name for name, kind in _LAYOUTS.items() if kind.matches(root)]
    if found:
        return found[0]
    inside = [child for child in sorted(root.iterdir())
              if child.is_dir() and any(kind.matches(child) for kind in _LAYOUTS.values())]
    raise InputError(where, "a folder of no known layout",
                     "; ".join(f"{kind.looks_for} ({name})" for name, kind in _LAYOUTS.items()),
                     f"did you mean {inside[0]}?" if inside else "correct the path")
