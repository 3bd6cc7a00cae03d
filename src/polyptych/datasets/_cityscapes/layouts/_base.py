"""The contract of a layout of Cityscapes."""

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
    """One layout of Cityscapes on disk. The images that are tested on are the official ``val``.

    Attributes:
        tested_on: how the protocol names the layout and the images that are tested on.
        semseg_note: what a reader of the numbers must know about the segmentation.
    """

    counts: ClassVar[Mapping[str, int]] = {"train": 2975, "val": 500}
    tested_on: ClassVar[str]
    semseg_note: ClassVar[str] = ""

    @abstractmethod
    def semseg(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        """Class ids (h w), counted from 0, and where there is a label."""

    def depth(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        """Meters float32 (h w) and where they are known, in a layout that has them."""
        raise NotImplementedError

    @abstractmethod
    def inverse_depth(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        """Inverse depth float32 (h w) in the unit of ``config.inverse_depth``, and where it is known."""
