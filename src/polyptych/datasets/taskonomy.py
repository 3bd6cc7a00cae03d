"""Taskonomy, Tiny split: indoor scans with segmentation, depth, normals, 2D keypoints and texture edges.

Source: Zamir, Sax, Shen, Guibas, Malik and Savarese, CVPR 2018, arXiv 1804.08328
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from polyptych.data.pictures import picture_size, read_color, read_gray
from polyptych.datasets._base import Dataset, EmptySplit
from polyptych.datasets._taskonomy.buildings import BUILDINGS, CLASSES
from polyptych.datasets._taskonomy.views import Views, find_order
from polyptych.errors import InputError, nearest
from polyptych.types import LabelInfo, Sample, SampleInfo

Label = tuple[Tensor, Tensor]

HOLE = 65535
METERS = 1 / 512
# AdaShare's and AutoMTL's range of each map, as a share of 65536; stronger responses are clipped to it.
STRONGEST = {"keypoints2d": 0.005, "edge_texture": 0.08}


class Taskonomy(Dataset):
    """The 25 / 5 / 5 buildings of the Tiny split, with its own ``val``; the five tasks of AdaShare and AutoMTL.

    - depth in meters, unknown where the scan has a hole. (AdaShare's target is log(1 + p) / log 2^16 of the stored
      number p, masked from p = 64500, 126 m, on; the losses ``log_l1`` and ``log_l2`` of the depth task come closest to
      it. Numbers are not comparable.)
    - normals decoded by 2 v / 255 - 1; unknown where depth is unknown, as in AdaShare, so they need the depth files.
    - semantic segmentation with 17 classes. The files mark uncertain pixels; see ``uncertain``. AdaShare weights the
      classes in the loss with numbers from its code: pass yours to the task as ``class_weights``.
    - keypoints2d and edge_texture from -1 (no response) to 1 (0.005 and 0.08 of the stored range, and beyond).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        root: Path = Path("data/taskonomy")
        """Folder of the dataset."""
        layout: Literal["auto", "buildings", "domains"] = "auto"
        """Order of the folders: BUILDING/DOMAIN (buildings) or DOMAIN/BUILDING (domains); auto detects it."""
        buildings: tuple[str, ...] = ()
        """Use only these buildings of the Tiny split, for example while a download is incomplete (default: all).
        Numbers are comparable only for the same buildings."""
        uncertain: Literal["ignore", "background"] = "ignore"
        """How to treat pixels that the segmentation marks as uncertain: as unlabeled, or as background (AdaShare,
        AutoMTL)."""

    config: Config

    labels: dict[str, LabelInfo] = {  # noqa: RUF012 (never modified; other datasets set their own)
        "semseg": LabelInfo(classes=CLASSES),
        "depth": LabelInfo(unit="m"),
        "normals": LabelInfo(note="red, green and blue read as x, y and z; the axes are unverified, so that only "
                                  "flipping is safe as augmentation"),
        "keypoints2d": LabelInfo(note="clipped at 0.005 of the stored range"),
        "edge_texture": LabelInfo(note="clipped at 0.08 of the stored range"),
    }

    def __init__(self, config: Config, *, split: str, tasks: tuple[str, ...]):
        super().__init__(config, split=split, tasks=tasks)
        root = Path(config.root)
        if not root.is_dir():
            raise InputError(f"root of taskonomy ({root})", "no such folder", "the folder of the dataset",
                             "download Taskonomy (Tiny), or check the path")
        self._files = Views(root, find_order(root) if config.layout == "auto" else config.layout)
        needed = dict.fromkeys(["image", *tasks, *(["depth"] if "normals" in tasks else [])])
        self.views = self._files.list(_chosen(config.buildings, split), list(needed))
        height, width = picture_size(self._files.path(self.views[0], "image"))
        self.protocol = "-".join([f"taskonomy-tiny-{height}x{width}",
                                  *(["background"] if config.uncertain == "background" else []),
                                  *(["+".join(sorted(config.buildings))] if config.buildings else [])])
        self._readers: dict[str, Callable[[str], Label]] = {
            "semseg": self._semseg, "depth": self._depth, "normals": self._normals,
            **{task: partial(self._response, task=task) for task in STRONGEST}}

    def __len__(self) -> int:
        return len(self.views)

    def read(self, index: int) -> Sample:
        view = self.views[index]
        image = read_color(self._files.path(view, "image"))
        size = (int(image.shape[1]), int(image.shape[2]))
        target, valid = {}, {}
        for task in self.tasks:
            target[task], valid[task] = self._readers[task](view)
            self._same_size(view, task, valid[task], size)
        return Sample(image, target, valid, SampleInfo(view, size, size))

    def _same_size(self, view: str, kind: str, valid: Tensor, size: tuple[int, int]) -> None:
        if (got := tuple(valid.shape)) != size:
            raise InputError(self._files.path(view, kind), f"a label of {got[0]}x{got[1]} pixels",
                             f"{size[0]}x{size[1]}, as its other files have", "copy the file again")

    def _semseg(self, view: str) -> Label:
        path = self._files.path(view, "semseg")
        stored = read_gray(path)
        if not (stored.dtype.kind in "ui" and stored.min() >= 0 and stored.max() <= len(CLASSES)):
            raise InputError(path, f"{stored.dtype} values up to {stored.max()}",
                             f"ids from 1 to {len(CLASSES)}, or 0 where uncertain",
                             "check that the file is a semantic segmentation")
        ids = torch.from_numpy(stored.astype(np.int64))
        certain = ids > 0 if self.config.uncertain == "ignore" else torch.ones_like(ids, dtype=torch.bool)
        return (ids - 1).clamp(min=0), certain

    def _depth(self, view: str) -> Label:
        stored = self._wide(view, "depth")
        valid = (stored > 0) & (stored != HOLE)
        return torch.where(valid, stored * METERS, 0), valid

    def _normals(self, view: str) -> Label:
        _, valid = self._depth(view)
        normals = read_color(self._files.path(view, "normals")).contiguous().float().mul_(2 / 255).sub_(1)
        length = normals.square().sum(0).sqrt_()
        self._same_size(view, "depth", valid, (int(length.shape[0]), int(length.shape[1])))
        valid = valid & (length > 0.1)  # a zero vector in 8 bits is not exactly zero
        return normals * (valid / length.clamp(min=0.1)), valid

    def _response(self, view: str, task: str) -> Label:
        share = (self._wide(view, task) / (65536 * STRONGEST[task])).clamp(max=1)
        return 2 * share - 1, torch.ones(share.shape, dtype=torch.bool)

    def _wide(self, view: str, kind: str) -> Tensor:
        """The 16-bit numbers of a picture, as float."""
        path = self._files.path(view, kind)
        stored = read_gray(path)
        if stored.dtype.kind not in "ui" or stored.itemsize < 2 or stored.min() < 0 or stored.max() > 65535:
            raise InputError(path, f"{stored.dtype} values", "16 bits per pixel",
                             "check that the file was not converted")
        return torch.from_numpy(stored.astype(np.float32))


def _chosen(buildings: tuple[str, ...], split: str) -> list[str]:
    known = [building for part in BUILDINGS.values() for building in part]
    for building in buildings:
        if building not in known:
            raise InputError("buildings of taskonomy", f"'{building}'", nearest(building, known),
                             "use one of these names")
    chosen = [building for building in BUILDINGS[split] if not buildings or building in buildings]
    if not chosen:
        raise EmptySplit("buildings of taskonomy", f"none of the {split} split",
                         f"one of {', '.join(BUILDINGS[split])}", "name at least one of each split")
    return chosen
