"""Base of the layouts of Cityscapes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from polyptych.datasets._layouts import Layout, LayoutCatalog

CATALOG: LayoutCatalog[CityscapesLayout] = LayoutCatalog("layout", "polyptych.datasets._cityscapes.layouts")
if TYPE_CHECKING:
    LayoutName = str
else:
    LayoutName = CATALOG.option()


class CityscapesLayout(Layout):
    """One layout of Cityscapes on disk. The test images are the official ``val``.

    Attributes:
        tested_on: how the protocol id names the layout and the test images.
        semseg_note: what a reader must know about the segmentation to interpret the numbers.
    """

    counts: ClassVar[Mapping[str, int]] = {"train": 2975, "val": 500}
    tested_on: ClassVar[str]
    semseg_note: ClassVar[str] = ""

    @abstractmethod
    def semseg(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        """Class ids (h w), counted from 0, and the mask of labeled pixels."""

    def depth(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        """Depth in meters, float32 (h w), and the mask of known pixels, if the layout has metric depth."""
        raise NotImplementedError

    @abstractmethod
    def inverse_depth(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        """Inverse depth, float32 (h w), in the unit of ``config.inverse_depth``, and the mask of known pixels."""
