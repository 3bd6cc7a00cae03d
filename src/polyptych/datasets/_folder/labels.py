"""Base of every kind of label in the user's files."""

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
    """Where the labels of one task come from: which ids have one, and how to read it for an image of a given size.

    Attributes:
        ids: all ids with a label, as far as labels are listed; some may have no image.
        files: the file of each id, if each label is a file of its own.
        doubts: warnings for the user before training on these labels.
    """

    has: Callable[[str], bool]
    read: Callable[[str, tuple[int, int]], Label]
    ids: Collection[str] = ()
    files: Mapping[str, Path] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Labels(ABC):
    """A table ``[tasks.NAME]``. Subclasses add the options of their kind."""

    task: str = ""
    """Kind of the task, if it differs from the table's name."""
    note: str = ""
    """What a reader must know about these labels to interpret the numbers."""

    @abstractmethod
    def info(self, root: Path, where: str) -> LabelInfo:
        """Label information, from the options alone.

        Args:
            where: the place of the table, for messages.

        Raises:
            InputError: options contradict each other.
        """

    @abstractmethod
    def open(self, root: Path, where: str) -> Source:
        """Find the labels.

        Raises:
            InputError: there are none in the place given.
        """

    def patterns(self, where: str) -> list[Pattern]:
        """Patterns of the files that are labels and therefore not images."""
        return []


@dataclass(frozen=True, kw_only=True)
class FileLabels(Labels):
    """One file for each image."""

    files: str
    """Path pattern of the labels, for instance labels/{id}.png."""
    key: str = ""
    """Name of the variable in .npz, .mat and .h5 files, or of the channel in .exr files."""

    def patterns(self, where: str) -> list[Pattern]:
        return [Pattern(self.files, f"{where}.files")]

    def open(self, root: Path, where: str) -> Source:
        files = find_readable(Pattern(self.files, f"{where}.files"), root)
        doubts = self.doubts_of(next(iter(files.values())), where)
        return Source(files.__contains__, Reader(self, files, where), files, files, tuple(doubts))

    def doubts_of(self, first: Path, where: str) -> Iterator[str]:
        """Warnings about these labels, judged by one of their files."""
        if is_lossy(first):
            yield f"{where}: {first.name} and files like it use lossy compression (JPEG), {self.losses}"

    losses: ClassVar[str] = "which changes stored numbers, especially at edges; use PNG"
    """What lossy compression does to these labels."""

    @abstractmethod
    def parse(self, array: np.ndarray, path: Path, where: str) -> Label:
        """Target and mask from the contents of a file.

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


# Advice for files of annotation tools, which cannot be read directly
_CONVERT = {
    ".json": "draw its polygons into .png files of ids with `polyptych data convert labelme` (or coco, ...)",
    ".xml": "draw its polygons into .png files of ids with `polyptych data convert cvat`",
}


def find_readable(pattern: Pattern, root: Path) -> dict[str, Path]:
    """:meth:`Pattern.find`, restricted to readable types.

    Raises:
        InputError: as for that method, or a file has another type.
    """
    files = pattern.find(root)
    for path in files.values():
        require_readable(path)
    return files


def require_readable(path: Path) -> None:
    """Refuse a file of an unsupported type by its name, before any is opened."""
    if (suffix := path.suffix.lower()) not in (*PICTURES, *ARRAYS):
        raise InputError(path, f"a file of type '{suffix}'", f"one of {', '.join((*PICTURES, *ARRAYS))}",
                         _CONVERT.get(suffix, "convert it, for instance to .npy or to 16-bit .png"))
    if suffix == ".exr":
        require_exr(path)
