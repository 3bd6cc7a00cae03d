"""The contract of a dataset: it reads its files (or makes its scenes) and hands out samples with explicit masks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from polyptych.component import Catalog, Component
from polyptych.data.order import shuffled
from polyptych.errors import InputError
from polyptych.types import LabelInfo, Sample

CATALOG: Catalog[Dataset] = Catalog("dataset", "polyptych.datasets")

SPLITS = ("train", "val", "test")


class EmptySplit(InputError):
    """The data has no such split, for instance because nothing is to be held out for validation: no fault of the
    files. Training then goes without validation, or ends without test numbers, and says so."""


class Dataset(Component, ABC):
    """One split of a dataset, restricted to the tasks that are asked for.

    ``val`` is always carved out of the official training images; nothing is ever selected on ``test``.

    Attributes:
        labels: what the dataset knows of each task it has labels for (all of them, not only those asked for).
        protocol: id of the protocol that numbers on this dataset belong to; numbers of different ids are never
            compared. It names everything that changes the numbers: classes, layout, native resolution.
        title: what the data set is called, where it is not called like its component.
        doubts: what is no error and yet perhaps not meant, one line each; known without reading a sample.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Component.Config):
        catalog = CATALOG

        def build(self, *, split: str, tasks: tuple[str, ...]) -> Dataset:
            """
            Raises:
                EmptySplit: there is no such split.
                InputError: files are missing or not as expected, or a task has no labels here.
            """
            if split == "val" and getattr(self, "validation", None) == 0:
                raise EmptySplit("--dataset.validation", "0, which holds no image out", "a share above 0",
                                 "set it, for instance to 0.1, to have a validation split")
            return self.owner(self, split=split, tasks=tasks)

        def kinds(self) -> dict[str, str]:
            """The kind of every task that is called otherwise than its kind: ``{"people": "semseg"}``."""
            return {}

        def whole(self) -> Dataset.Config:
            """The same choices without a file that holds some of them, for what is recorded."""
            return self
        def known_labels(self) -> dict[str, LabelInfo]:
            """What is known of the labels without any file; empty where only the files say it."""
            return {}

    labels: dict[str, LabelInfo]
    protocol: str
    title: str = ""
    doubts: tuple[str, ...] = ()

    def __init__(self, config: Config, *, split: str, tasks: tuple[str, ...]):
        self.config, self.split, self.tasks = config, split, tasks
        if split not in SPLITS:
            raise InputError(f"split of {config.name}", f"'{split}'", f"one of {', '.join(SPLITS)}", "choose one")
        for task in tasks:
            if task not in self.labels:
                raise InputError(f"task '{task}'", f"dataset {config.name}, which has no labels for it",
                                 f"one of {', '.join(self.labels)}", "leave the task out or choose another dataset")

    def scores(self, metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """Numbers that this dataset makes of the metrics of all its tasks, by name; none by default. They are written
        and shown beside the skill and choose nothing."""
        return {}

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples; an endless dataset gives a large number."""

    def labelled(self, task: str) -> int:
        """How many of the samples have a label of a task, known without reading them; all, by default."""
        return len(self)

    def without_image(self, task: str) -> list[str]:
        """Ids with a label of a task and no image in any split, as far as labels are listed."""
        return []

    def without_label(self, task: str) -> list[str]:
        """Ids of this split's samples that have no label of a task, as far as that is known without reading them."""
        return []

    def index_at(self, position: int, seed: int) -> int:
        """The sample at ``position`` of the endless stream that training reads. It depends on nothing but its
        arguments, so that a run resumes by asking for a later position. By default every ``len(self)``
        positions are a permutation of all samples, a new one in each epoch; a dataset that weighs its samples
        overrides it."""
        return shuffled(position, len(self), seed)

    @abstractmethod
    def read(self, index: int) -> Sample:
        """The sample as it is on disk: uint8 image (3 h w), targets and masks at native size, in the form each task
        states (class ids int64 (h w); depth float32 (h w) meters; normals float32 (3 h w) unit vectors, x right,
        y down, z forward; boundaries and saliency float32 (h w) in {0, 1}; keypoints float32 (persons, K, 3) with
        x, y, visible).

        Raises:
            InputError: a file cannot be read or holds values that its task does not allow; the file is named.
        """
