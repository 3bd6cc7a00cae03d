"""Layouts: the ways in which a dataset's files may be arranged on disk, each a class in a file of its own.

The folder ``datasets/_NAME/layouts/`` is the registry, as ``decoders/`` is for decoders (:mod:`polyptych.component`). A
new file there becomes a new choice of ``--dataset.layout`` with its line of help, is found by ``auto``, gets a row in
``polyptych data info NAME``, and writes the miniature of ``polyptych data fixture NAME DIR --layout``; nothing else
needs to be edited.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import tyro
from jaxtyping import UInt8
from torch import Tensor

from polyptych.component import Catalog, Component
from polyptych.data.files import is_visible, require_files, spelled
from polyptych.data.pictures import read_color, require_size
from polyptych.datasets._about import LayoutFacts
from polyptych.datasets._base import Dataset
from polyptych.datasets._holdout import blocks, checked_share, part_of
from polyptych.errors import InputError, nearest
from polyptych.types import Sample, SampleInfo

Files = dict[str, dict[str, Path]]
Label = tuple[Tensor, Tensor]
"""A target and the mask where it is known."""


class Layout(Component, ABC):
    """One way in which a dataset's files are arranged on disk. The first line of the module's docstring is its help.

    Attributes:
        looks_for: description of how it is recognized, for messages and ``polyptych data info``.
        counts: number of images of each official split, if known.
        note: what distinguishes its numbers from those of other layouts.
        auto_order: ``auto`` takes the first layout that matches, lowest number first. A layout that is a special case
            of another must come before it, or else can only be chosen by name.
        files: for ``image`` and every other kind of file, the path of each frame that exists.
        kinds: kinds of files that the label of each task is read from.
    """

    looks_for: ClassVar[str]
    counts: ClassVar[Mapping[str, int]] = {}
    note: ClassVar[str] = ""
    auto_order: ClassVar[int] = 0
    kinds: Mapping[str, tuple[str, ...]]

    def __init__(self, config: Any):
        """
        Args:
            config: the dataset's options, already checked by :meth:`accept`.
        """
        self.config, self.root = config, spelled(Path(config.root))
        self.files: Files = self.find()

    @classmethod
    @abstractmethod
    def matches(cls, root: Path) -> bool:
        """Whether ``root`` looks like this layout. Must be quick: ``auto`` asks every layout."""

    @classmethod
    def accept(cls, config: Any, tasks: tuple[str, ...]) -> None:
        """Refuse options and tasks that this layout has no files for, before any folder is listed.

        Raises:
            InputError: an option or task is not available; the message names the choices that are.
        """

    @abstractmethod
    def find(self) -> Files:
        """List the folders."""

    @abstractmethod
    def frames(self, part: str) -> list[str]:
        """Names of the official training images (``train``) or of the test images (``test``), neighbors next to each
        other."""

    def runs(self, frames: list[str]) -> Sequence[Sequence[str]]:
        """The frames in groups that show the same place, so that no place is in both ``train`` and ``val``. By default,
        blocks of neighbors, for files that do not tell."""
        return blocks(frames)

    @abstractmethod
    def expected(self, frame: str, kind: str) -> Path:
        """The path where a file should be."""

    def has(self, task: str) -> bool:
        """Whether there are files for the labels of a task."""
        return task in self.kinds and all(self.files.get(kind) for kind in self.kinds[task])

    def path(self, frame: str, kind: str) -> Path:
        return self.files[kind][frame]

    def label_path(self, frame: str, task: str) -> Path:
        """The file that holds the label of a task, for messages."""
        return self.path(frame, self.kinds[task][0])

    def require(self, frames: list[str], tasks: Iterable[str]) -> None:
        """Refuse a half-copied dataset; see :func:`polyptych.data.files.require_files`."""
        for kind in dict.fromkeys(["image", *(kind for task in tasks for kind in self.kinds[task])]):
            missing = next((frame for frame in frames if frame not in self.files[kind]), frames[0])
            require_files(self.expected(missing, kind).parent, frames, self.files[kind],
                          partial(self.expected, kind=kind))

    @abstractmethod
    def size(self, frame: str) -> tuple[int, int]:
        """Size (h, w) of a frame, if possible without decoding it."""

    def image(self, frame: str) -> UInt8[Tensor, "3 h w"]:
        """The upright RGB image; a layout without one image file per frame overrides this."""
        return read_color(self.path(frame, "image"))

    @classmethod
    @abstractmethod
    def write_fixture(cls, root: Path) -> None:
        """Write the dataset in miniature, with the same made-up frames as every other layout of it."""


AnyLayout = TypeVar("AnyLayout", bound=Layout)


@dataclass(frozen=True)
class LayoutCatalog(Catalog[AnyLayout]):
    """The layouts of a dataset: the modules of ``polyptych.datasets._NAME.layouts``, and entry points of that name."""

    @property
    def dataset(self) -> str:
        return self.package.split(".")[-2].removeprefix("_")

    def option(self) -> Any:
        """The type of the dataset's option ``layout``, with its choices and its help."""
        about = " ".join(f"{name}: {self.describe(name).summary}" for name in self.names())
        return Annotated[Literal[("auto", *self.names())],
                         tyro.conf.arg(help=f"Layout of the files on disk; auto detects it. {about}")]

    def by_name(self) -> dict[str, type[AnyLayout]]:
        """Every layout, in the order in which ``auto`` tries them."""
        found = {name: self.load(name) for name in self.names()}
        return dict(sorted(found.items(), key=lambda item: (item[1].auto_order, item[0])))

    def facts(self) -> dict[str, LayoutFacts]:
        """What ``polyptych data info`` says of each layout."""
        return {name: LayoutFacts(kind.looks_for, kind.counts, kind.note) for name, kind in self.by_name().items()}

    def fixtures(self) -> dict[str, Callable[[Path], None]]:
        """By layout, a function that writes the dataset in miniature."""
        return {name: kind.write_fixture for name, kind in self.by_name().items()}

    def open(self, config: Any, tasks: tuple[str, ...]) -> AnyLayout:
        """The layout that the options name, or the one that is detected.

        Raises:
            InputError: there is no such folder, it has another layout, or the layout lacks an option or task.
        """
        root = spelled(Path(config.root))
        where = f"root of {self.dataset} ({root})"
        if not root.is_dir():
            raise InputError(where, "no such folder", "the folder of the dataset",
                             f"check the path, or get the files (`polyptych data info {self.dataset}`)")
        if config.layout != "auto" and config.layout not in self.names():
            raise InputError(f"layout of {self.dataset}", f"'{config.layout}'",
                             nearest(config.layout, ["auto", *self.names()]), "use one of these names")
        kind = self._detect(root, where) if config.layout == "auto" else self.load(config.layout)
        if not kind.matches(root):
            raise InputError(where, f"a folder without {kind.looks_for}", f"the layout '{config.layout}'",
                             "check the path, or use --dataset.layout auto")
        kind.accept(config, tasks)
        return kind(config)

    def _detect(self, root: Path, where: str) -> type[AnyLayout]:
        kinds = self.by_name()
        for kind in kinds.values():
            if kind.matches(root):
                return kind
        inside = [child for child in sorted(root.iterdir())
                  if is_visible(child.name) and child.is_dir() and any(kind.matches(child) for kind in kinds.values())]
        raise InputError(where, "a folder of no known layout",
                         "; ".join(f"{kind.looks_for} ({name})" for name, kind in kinds.items()),
                         f"did you mean {inside[0]}?" if inside else "check the path")


class LayoutDataset(Dataset):
    """A dataset whose files may have one of several layouts on disk. The dataset defines what the labels mean; the
    layout reads them.

    ``val`` is carved out of the official training images, whole runs at a time (:meth:`Layout.runs`,
    :mod:`polyptych.datasets._holdout`), and is the same on every machine.

    Attributes:
        layouts: all layouts of the dataset.
        layout: the layout of the files.
        frames: names of the frames of this split.
    """

    layouts: ClassVar[LayoutCatalog[Any]]
    layout: Layout

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        root: Path
        """Folder of the dataset."""
        layout: str = "auto"
        validation: float = 0.1
        """Share of the official training images that is held out as val (0: train on all of them)."""

    config: Config

    def __init__(self, config: Config, *, split: str, tasks: tuple[str, ...]):
        checked_share(config.validation, config.name)
        self.config = config
        self.layout = self.layouts.open(config, tasks)
        self.labels = self.find_labels(tasks)
        super().__init__(config, split=split, tasks=tasks)
        frames = self.layout.frames("test" if split == "test" else "train")
        self.frames = part_of(frames, self.layout.runs(frames), config.validation, split, self.layout.root)
        self.layout.require(self.frames, tasks)

    @abstractmethod
    def find_labels(self, tasks: tuple[str, ...]) -> dict[str, Any]:
        """Label information for the tasks that the layout has files for. (May include requested ``tasks`` without
        files, so that an error can name the missing files.)"""

    @abstractmethod
    def label(self, task: str, frame: str) -> Label:
        """The label of a task, in the form that :meth:`Dataset.read` defines."""

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, index: int) -> Sample:
        frame = self.frames[index]
        image = self.layout.image(frame)
        size = (int(image.shape[1]), int(image.shape[2]))
        target, valid = {}, {}
        for task in self.tasks:
            target[task], valid[task] = self.label(task, frame)
            height, width = valid[task].shape
            require_size((height, width), size, self.layout.label_path(frame, task), self.layout.path(frame, "image"))
        return Sample(image, target, valid, SampleInfo(frame, size, size))
