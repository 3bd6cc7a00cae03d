"""Base of the layouts of NYUv2."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float
from torch import Tensor

from polyptych.data.pictures import picture_size
from polyptych.datasets._holdout import numbered_runs
from polyptych.datasets._layouts import Layout, LayoutCatalog
from polyptych.errors import InputError

CATALOG: LayoutCatalog[NYUv2Layout] = LayoutCatalog("layout", "polyptych.datasets._nyuv2.layouts")
if TYPE_CHECKING:
    LayoutName = str
else:
    LayoutName = CATALOG.option()


class NYUv2Layout(Layout):
    """One layout of NYUv2 on disk.

    ``raw_depth`` is a kind of file of its own, because one layout holds both depths.

    Attributes:
        classes: numbers of classes that its segmentation can be read with, the finest first; includes 41 if unlabeled
            pixels can be told apart from all others.
        semseg_note: what a reader must know about the segmentation to interpret the numbers.
        normals_note: where its normals come from, as far as known.
    """

    counts: ClassVar[Mapping[str, int]] = {"train": 795, "test": 654}
    classes: ClassVar[tuple[int, ...]] = (41, 40, 13)
    semseg_note: ClassVar[str] = ""
    normals_note: ClassVar[str] = ""

    def __init__(self, config: Any):
        super().__init__(config)
        depth = "raw_depth" if config.raw_depth else "depth"
        if config.raw_depth and not self.files.get(depth):
            got = f"the layout '{self.component_name()}' of {self.root}, which has none"
            raise InputError("raw_depth of nyuv2", got, "the layout 'official' with the variable 'rawDepths'",
                             "leave it out")
        # Boundaries are derived from the segmentation if none are stored.
        edges = "boundaries" if self.files.get("boundaries") else "semseg"
        self.kinds = {"semseg": ("semseg",), "depth": (depth,), "normals": ("normals",), "boundaries": (edges,)}

    @classmethod
    def accept(cls, config: Any, tasks: tuple[str, ...]) -> None:
        if config.classes not in cls.classes:
            raise InputError("classes of nyuv2", f"{config.classes} with the layout '{cls.component_name()}'",
                             f"{' or '.join(map(str, cls.classes))}, all that this layout distinguishes",
                             f"set classes to {cls.classes[0]}")

    def runs(self, frames: list[str]) -> Sequence[Sequence[str]]:
        """Consecutive official numbers, because neighboring frames show the same room. The official split keeps rooms
        together, so a gap (where test images were) ends a room."""
        return numbered_runs(frames)

    def size(self, frame: str) -> tuple[int, int]:
        return picture_size(self.path(frame, "image"))

    @abstractmethod
    def semseg(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        """Class ids (h w), counted from 0, and the mask of labeled pixels."""

    @abstractmethod
    def depth(self, frame: str) -> np.ndarray:
        """Depth in meters (h w); zero, negative or NaN where unknown."""

    def normals(self, frame: str) -> Float[Tensor, "3 h w"]:
        """Normal vectors of any length, zero where unknown, if the layout has them."""
        raise NotImplementedError

    def boundaries(self, frame: str) -> np.ndarray:
        """The stored boundary map, bool (h w), if the layout has one."""
        raise NotImplementedError

    def raw_depth(self, frame: str) -> np.ndarray:
        """Like :meth:`depth`, but with the holes of the sensor, if the layout has it."""
        raise NotImplementedError
