"""Base of all datasets: they read files (or generate scenes) and return samples with explicit masks."""

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
    """The data has no such split, for instance because no images are held out for validation. This is not an error of
    the files: training then runs without validation, or ends without test numbers, and says so."""


class Dataset(Component, ABC):
    """One split of a dataset, restricted to the requested tasks.

    ``val`` is always carved out of the official training images; nothing is ever selected on ``test``.

    Attributes:
        labels: label information for every task that the dataset has labels for, requested or not.
        protocol: id of the protocol that numbers on this dataset belong to; numbers of different ids are never
            compared. It names everything that changes the numbers: classes, layout, native resolution.
        title: name of the dataset, if it differs from that of its component.
        doubts: warnings, one line each, of what is no error but may be unintended; known without reading a sample.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Component.Config):
        catalog = CATALOG

        def build(self, *, split: str, tasks: tuple[str, ...]) -> Dataset:
            """Open one split with labels of these tasks.

            Raises:
                EmptySplit: there is no such split.
                InputError: files are missing or not as expected, or a task has no labels here.
            """
            if split == "val" and getattr(self, "validation", None) == 0:
                raise EmptySplit("--dataset.validation", "0, which holds out no image", "a share above 0",
                                 "set it, for instance to 0.1, to have a validation split")
            return self.owner(self, split=split, tasks=tasks)

        def kinds(self) -> dict[str, str]:
            """The kind of every task whose name is not that of its kind: ``{"people": "semseg"}``."""
            return {}

        def whole(self) -> Dataset.Config:
            """The same options with those from a file written out, so that a record does not depend on that file."""
            return self
        def known_labels(self) -> dict[str, LabelInfo]:
            """Label information that is known without any files; empty if only the files have it."""
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
        """Combined scores over the metrics of all tasks, by name; none by default. They are written and shown next to
        the skill, but nothing is selected by them."""
        return {}

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples; an endless dataset returns a large number."""

    def labelled(self, task: str) -> int:
        """How many samples have a label of a task, as far as known without reading them; by default all."""
        return len(self)

    def without_image(self, task: str) -> list[str]:
        """Ids that have a label of a task but no image in any split, as far as labels are listed."""
        return []

    def without_label(self, task: str) -> list[str]:
        """Ids of this split's samples that have no label of a task, as far as that is known without reading them."""
        return []

    def index_at(self, position: int, seed: int) -> int:
        """The sample at ``position`` of the endless stream that training reads. It depends on nothing but its
        arguments, so that a run resumes by asking for a later position. By default every ``len(self)``
        positions are a permutation of all samples, a new one in each epoch; a dataset that weights its samples
        overrides this."""
        return shuffled(position, len(self), seed)

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Read one sample as it is on disk: uint8 image (3 h w), targets and masks at native size, in the form of each
        task (class ids int64 (h w); depth float32 (h w) meters; normals float32 (3 h w) unit vectors, x right, y down,
        z forward; boundaries and saliency float32 (h w) in {0, 1}; keypoints float32 (persons, K, 3) with x, y,
        visible).

        Raises:
            InputError: a file cannot be read or holds values that its task does not allow; the file is named.
        """
