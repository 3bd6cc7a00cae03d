"""What every kind of label in the user's files has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from polyptych.datasets._folder.arrays import read_array
from polyptych.datasets._folder.patterns import Pattern
from polyptych.errors import InputError
from polyptych.types import LabelInfo

Label = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Source:
    """Where the labels of one task come from: which ids have one, and how it is read for an image of a size."""

    has: Callable[[str], bool]
    read: Callable[[str, tuple[int, int]], Label]


@dataclass(frozen=True, kw_only=True)
class Labels(ABC):
    """A table ``[tasks.NAME]``. Subclasses add what their kind needs."""

    task: str = ""
    """Kind of the task, where the table's name is another."""
    note: str = ""
    """What a reader of the numbers must know about these labels."""

    @abstractmethod
    def info(self, root: Path, where: str) -> LabelInfo:
        """
        Args:
            where: the place of the table, for messages.

        Raises:
            InputError: options contradict each other.
        """

    @abstractmethod
    def open(self, root: Path, where: str) -> Source:
        """Find the labels.

        Raises:
            InputError: there are none where they are said to be.
        """

    def patterns(self, where: str) -> list[Pattern]:
        """Of the files that are labels and therefore no images."""
        return []


@dataclass(frozen=True, kw_only=True)
class FileLabels(Labels):
    """One file for each image."""

    files: str
    """Where they lie, for instance labels/{id}.png."""
    key: str = ""
    """Name of the variable in .npz, .mat and .h5 files."""

    def patterns(self, where: str) -> list[Pattern]:
        return [Pattern(self.files, f"{where}.files")]

    def open(self, root: Path, where: str) -> Source:
        files = Pattern(self.files, f"{where}.files").find(root)
        return Source(files.__contains__, Reader(self, files, where))

    @abstractmethod
    def parse(self, array: np.ndarray, path: Path, where: str) -> Label:
        """Target and mask from what a file holds.

        Raises:
            InputError: the values do not fit the options; the file is named.
        """

    def load(self, path: Path) -> np.ndarray:
        return read_array(path, self.key)


@dataclass(frozen=True)
class Reader:
    """Reads one of the files."""

    labels: FileLabels
    files: dict[str, Path]
    where: str

    def __call__(self, sample: str, size: tuple[int, int]) -> Label:
        path = self.files[sample]
        target, valid = self.labels.parse(self.labels.load(path), path, self.where)
        return target, sized(valid, size, path)


def sized(valid: Tensor, size: tuple[int, int], path: Path) -> Tensor:
    """The mask, if it has the size of its image."""
    if tuple(valid.shape) != size:
        raise InputError(path, f"a label of {valid.shape[0]}x{valid.shape[1]} pixels",
                         f"the size of its image, {size[0]}x{size[1]}", "resize the one or the other")
    return valid
