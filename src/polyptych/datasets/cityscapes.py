"""Cityscapes: street scenes with semantic segmentation and depth from stereo.

Source: Cordts et al., CVPR 2016, arXiv 1604.01685
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from polyptych.datasets._cityscapes.classes import COLORS, NAMES
from polyptych.datasets._cityscapes.layouts._base import CATALOG, CityscapesLayout, LayoutName
from polyptych.datasets._layouts import Label, LayoutDataset
from polyptych.types import LabelInfo


class Cityscapes(LayoutDataset):
    """Cityscapes with its finely labeled images: 2975 official training images, 500 official validation images.

    **Our** ``test`` **is the official** ``val``: the labels of the official test images are dummies, and all
    published multi-task numbers are on ``val``. The protocol id says so (``official_val``; the ``mtan`` layout
    has nothing else). Our ``val`` is carved out of the official training images: whole cities, as the official
    split has it, or blocks of 40 consecutive frames where the files do not tell the city.

    Tasks: ``semseg``; ``depth`` in meters (official layout only; no label where the disparity is unknown or
    zero, or the depth beyond 1 km); ``inverse_depth`` as MTAN has it (a fraction, larger is nearer) or as
    disparity in pixels.
    """

    layouts = CATALOG
    layout: CityscapesLayout

    @dataclass(frozen=True, kw_only=True)
    class Config(LayoutDataset.Config):
        root: Path = Path("data/cityscapes")
        """Folder of the dataset."""
        layout: LayoutName = "auto"
        classes: Literal[19, 7, 2] = 19
        """Number of semantic classes: the official 19, their 7 categories, or 2 for moving things against everything
        else."""
        inverse_depth: Literal["fraction", "pixels"] = "fraction"
        """Unit of inverse depth: the 16-bit disparity code / 65535 (MTAN), or pixels at the official width (official
        layout only)."""

        def known_labels(self) -> dict[str, LabelInfo]:
            return {"semseg": LabelInfo(classes=NAMES[self.classes], colors=COLORS[self.classes]),
                    "depth": LabelInfo(unit="m"),
                    "inverse_depth": LabelInfo(unit="px" if self.inverse_depth == "pixels" else "")}

    config: Config

    def __init__(self, config: Config, *, split: str, tasks: tuple[str, ...]):
        super().__init__(config, split=split, tasks=tasks)
        height, width = self.layout.size(self.frames[0])
        self.protocol = f"cityscapes-{config.classes}-{height}x{width}-{self.layout.tested_on}"
        if config.inverse_depth == "pixels":
            self.protocol += "-px"

    def find_labels(self, tasks: tuple[str, ...]) -> dict[str, LabelInfo]:
        layout, classes = self.layout, self.config.classes
        pixels = self.config.inverse_depth == "pixels"
        labels = {
            "semseg": LabelInfo(classes=NAMES[classes], colors=COLORS[classes], note=layout.semseg_note),
            "depth": LabelInfo(unit="m", note="from stereo; no label where the disparity is unknown or zero, or "
                                              "beyond 1 km"),
            "inverse_depth": LabelInfo(
                unit="px" if pixels else "",
                note="disparity at the official width of 2048; 0 is infinitely far" if pixels else
                "16-bit code of the disparity / 65535; 1/65535 is infinitely far and dominates rel"),
        }
        # A requested task is offered even without files, so that an error can name the missing files.
        return {task: info for task, info in labels.items()
                if layout.has(task) or (task in tasks and task in layout.kinds)}

    def label(self, task: str, frame: str) -> Label:
        readers: dict[str, Callable[[str], tuple[np.ndarray, np.ndarray]]] = {
            "semseg": self.layout.semseg, "depth": self.layout.depth, "inverse_depth": self.layout.inverse_depth}
        values, known = readers[task](frame)
        label = torch.from_numpy(values)
        return label if label.is_floating_point() else label.long(), torch.from_numpy(known)
