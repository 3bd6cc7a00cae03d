"""What both layouts of Cityscapes on disk have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from polyptych.data._files import require_files

Files = dict[str, dict[str, Path]]


class Layout(ABC):
    """One way in which Cityscapes lies on disk.

    Attributes:
        looks_for: what identifies the layout, for messages.
        tested_on: how the protocol names the layout and the images that are tested on.
        semseg_note: what a reader of the numbers must know about the segmentation.
        kinds: kinds of files that each task needs.
        files: for every kind of file, the path of each frame that is there.
    """

    looks_for: ClassVar[str]
    tested_on: ClassVar[str]
    semseg_note: ClassVar[str]
    kinds: dict[str, tuple[str, ...]]

    def __init__(self, root: Path, classes: int):
        self.root, self.classes = root, classes
        self.files: Files = self.find()

    @classmethod
    @abstractmethod
    def matches(cls, root: Path) -> bool:
        """Whether ``root`` looks like this layout."""

    @abstractmethod
    def find(self) -> Files:
        """List the folders."""

    @abstractmethod
    def frames(self, official: str) -> list[str]:
        """Names of the frames of the official split ``train`` or ``val``, neighbors side by side."""

    @abstractmethod
    def runs(self, frames: list[str]) -> Sequence[Sequence[str]]:
        """The frames in groups that show the same place."""

    @abstractmethod
    def expected(self, frame: str, kind: str) -> Path:
        """Where a file would be."""

    def has(self, task: str) -> bool:
        """Whether there are files for a task."""
        return task in self.kinds and all(self.files[kind] for kind in self.kinds[task])

    def path(self, frame: str, kind: str) -> Path:
        return self.files[kind][frame]

    def require(self, frames: list[str], tasks: Iterable[str]) -> None:
        """Refuse a half-copied dataset; see :func:`polyptych.data._files.require_files`."""
        for kind in dict.fromkeys(["image", *(kind for task in tasks for kind in self.kinds[task])]):
            missing = next((frame for frame in frames if frame not in self.files[kind]), frames[0])
            require_files(self.expected(missing, kind).parent, frames, self.files[kind],
                          partial(self.expected, kind=kind))

    @abstractmethod
    def size(self, frame: str) -> tuple[int, int]:
        """(h, w) of a frame, without reading its pixels."""

    @abstractmethod
    def image(self, frame: str) -> UInt8[Tensor, "3 h w"]: ...

    @abstractmethod
    def semseg(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        """Class ids (h w), counted from 0, and where there is a label."""

    def depth(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        """Meters float32 (h w) and where they are known, in the layout that has them."""
        raise NotImplementedError

    @abstractmethod
    def inverse_depth(self, frame: str, unit: str) -> tuple[np.ndarray, np.ndarray]:
        """Inverse depth float32 (h w) as a ``fraction`` or in ``pixels``, and where it is known."""
