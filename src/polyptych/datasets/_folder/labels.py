"""What every kind of label in the user's files has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from polyptych.data._float_pictures import require_exr
from polyptych.data.arrays import ARRAYS, read_array
from polyptych.data.pictures import PICTURES, is_lossy
from polyptych.datasets._folder.patterns import Pattern
from polyptych.errors import InputError
from polyptych.types import LabelInfo

Label = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Source:
    """Where the labels of one task come from: which ids have one, and how it is read for an image of a size.

    Attributes:
        ids: all that have one, as far as labels are listed; there may be no image for some of them.
        files: of those, where each has a file of its own.
        doubts: what a user should know before training on these labels.
    """

    has: Callable[[str], bool]
    read: Callable[[str, tuple[int, int]], Label]
    ids: Collection[str] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()


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
    """Name of the variable in .npz, .mat and .h5 files, or of the channel in .exr files."""

    def patterns(self, where: str) -> list[Pattern]:
        return [Pattern(self.files, f"{where}.files")]

    def open(self, root: Path, where: str) -> Source:
        files = find_readable(Pattern(self.files, f"{where}.files"), root)
        doubts = self.doubts_of(next(iter(files.values())), where)
        return Source(files.__contains__, Reader(self, files, where), files, files, tuple(doubts))

    def doubts_of(self, first: Path, where: str) -> Iterator[str]:
        """What makes these labels doubtful, known by one of their files."""
        if is_lossy(first):
            yield f"{where}: {first.name} and files like it were compressed with losses (JPEG), {self.losses}"

    losses: ClassVar[str] = "which changes stored numbers, most of all at edges; use PNG"
    """What compression with losses does to these labels."""

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
        return self.labels.parse(self.labels.load(path), path, self.where)


# What a user can do with files of annotation tools, which have no form of their own here
_CONVERT = {
    ".json": "draw its polygons into .png files of ids with `polyptych data convert labelme` (or coco, ...)",
    ".xml": "draw its polygons into .png files of ids with `polyptych data convert cvat`",
}


def find_readable(pattern: Pattern, root: Path) -> dict[str, Path]:
    """:meth:`Pattern.find`, of files that can be read.

    Raises:
        InputError: as there, or one is of another type.
    """
    files = pattern.find(root)
    for path in files.values():
        require_readable(path)
    return files


def require_readable(path: Path) -> None:
    """Refuse a file of a type that is not read, by its name, before the first one is opened."""
    if (suffix := path.suffix.lower()) not in (*PICTURES, *ARRAYS):
        raise InputError(path, f"a file of type '{suffix}'", f"one of {', '.join((*PICTURES, *ARRAYS))}",
                         _CONVERT.get(suffix, "convert it, for instance to .npy or to 16-bit .png"))
    if suffix == ".exr":
        require_exr(path)
