"""A fixed number of augmented views of every image, the same for all seeds, so that features can be computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from polyptych.data.order import hashed
from polyptych.data.transforms import Augment, augment
from polyptych.datasets._base import Dataset
from polyptych.record import encode
from polyptych.tasks._base import Task
from polyptych.types import Sample


class Views(Dataset):
    """A dataset of augmented samples. View v of an image depends only on the image's index and on v, not on the seed of
    the run. Every epoch has each image once, in its next view.

    Attributes:
        cache_facts: what the decoded copy of the views depends on besides the dataset.
        exact_labels, without_images: contents of such a copy: exact labels, and no images.
    """

    exact_labels, without_images = True, True

    def __init__(self, dataset: Dataset, tasks: Mapping[str, Task], how: Augment, size: tuple[int, int], number: int):
        self.labels, self.protocol, self.doubts = dataset.labels, dataset.protocol, dataset.doubts
        super().__init__(dataset.config, split=dataset.split, tasks=dataset.tasks)
        self.inner, self.of_tasks, self.how, self.size, self.number = dataset, tasks, how, size, number
        kinds = {name: encode(tasks[name].config) for name in dataset.tasks}
        self.cache_facts: dict[str, Any] = {"views": number, "augment": dataclasses.asdict(how), "size": size,
                                            "kinds": kinds}

    def __len__(self) -> int:
        return self.number * len(self.inner)

    def labelled(self, task: str) -> int:
        return self.number * self.inner.labelled(task)

    def index_at(self, position: int, seed: int) -> int:
        images = len(self.inner)
        return self.inner.index_at(position, seed) + images * (position // images % self.number)

    def read(self, index: int) -> Sample:
        view, image = divmod(index, len(self.inner))
        generator = torch.Generator().manual_seed(hashed(image, view))
        return augment(self.inner.read(image), self.of_tasks, self.size, generator, self.how)
