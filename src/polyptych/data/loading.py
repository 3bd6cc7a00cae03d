"""Batches for training and evaluation, each a pure function of (seed, position in the stream).

Nothing depends on the number of worker processes, and a run resumes exactly by starting at a later batch:
there is no state to save. A sample that cannot be read stops the run with an error that names it, or is
skipped and recorded.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch.utils.data import DataLoader

from polyptych.data.order import hashed
from polyptych.data.pictures import require_size
from polyptych.data.transforms import Augment, augment, collate, resize_image
from polyptych.datasets._base import Dataset
from polyptych.errors import InputError
from polyptych.tasks._base import Task
from polyptych.types import Batch, Sample

OnFault = Literal["stop", "skip"]

_TRIES = 16  # consecutive faulty samples beyond which more than single files must be wrong
_MOST_FAULTY = 0.5  # share of the dataset's samples


def check(sample: Sample, tasks: Mapping[str, Task]) -> None:
    """Refuse a sample whose labels do not have the image's size or hold values that their task does not allow.

    Raises:
        InputError: a label is wrong; the message names the sample and the task.
    """
    size = (int(sample.image.shape[-2]), int(sample.image.shape[-1]))
    for name, target in sample.target.items():
        where = f"label '{name}' of sample {sample.info.id}"
        valid = sample.valid[name]
        require_size((int(valid.shape[0]), int(valid.shape[1])), size, where)
        if fault := tasks[name].fault(target, valid):
            raise InputError(where, fault, "values that the task allows",
                             "repair the file, or skip faulty samples")


class Batches(ABC, Iterable[Batch]):
    """What training and evaluation batches have in common: workers, and the handling of faulty samples.

    Attributes:
        faults: ``{index in the dataset: message}`` of the samples that were skipped so far.
    """

    def __init__(self, dataset: Dataset, tasks: Mapping[str, Task], batch_size: int, rank: int,
                 world: int, workers: int, pin_memory: bool, on_fault: OnFault):
        if not len(dataset):
            raise InputError(f"{dataset.split} split of {dataset.config.name}", "no samples", "at least one",
                             "check the dataset's folder")
        for name, value, least in (("batch size", batch_size, 1), ("workers", workers, 0)):
            if value < least:
                raise InputError(name, str(value), f"at least {least}", "raise it")
        self.dataset, self.tasks, self.batch_size = dataset, tasks, batch_size
        self.rank, self.world, self.workers, self.pin_memory = rank, world, workers, pin_memory
        self.on_fault = on_fault
        self.faults: dict[int, str] = {}

    @abstractmethod
    def _numbers(self) -> Iterable[int]:
        """The batches to make, in order."""

    @abstractmethod
    def _samples(self, number: int, faults: _Faults) -> list[Sample]:
        """The samples of one batch. Runs in a worker process."""

    def __iter__(self) -> Iterator[Batch]:
        loader = DataLoader(_Fetch(self), batch_size=None, sampler=_Numbers(self._numbers()),
                            num_workers=self.workers, collate_fn=_as_it_is, pin_memory=self.pin_memory,
                            generator=torch.Generator())  # keeps the loader from drawing from the global one
        for batch, faults in loader:
            self._record(faults)
            if isinstance(batch, InputError):
                raise batch
            if batch is not None:
                yield batch

    def fetch(self, number: int) -> tuple[Batch | InputError | None, list[_Fault]]:
        """One batch; None if all its samples were skipped. An InputError is returned, not raised, because torch would
        wrap an error from a worker in another exception."""
        faults = _Faults(self.on_fault)
        try:
            samples = self._samples(number, faults)
            return (collate(samples, self.tasks) if samples else None), faults.seen
        except InputError as error:
            return error, faults.seen

    def _read(self, index: int) -> Sample:
        sample = self.dataset.read(index)
        check(sample, self.tasks)
        return sample

    def _record(self, faults: list[_Fault]) -> None:
        self.faults.update(faults)
        if len(self.faults) > _MOST_FAULTY * len(self.dataset):
            raise InputError(f"{self.dataset.split} split of {self.dataset.config.name}",
                             f"{len(self.faults)} faulty samples among {len(self.dataset)}",
                             "most samples to be readable",
                             f"repair the dataset; for instance {next(iter(self.faults.values()))}")


class TrainingBatches(Batches):
    """An endless stream of augmented batches.

    Batch ``k`` of process ``rank`` holds the ``batch_size`` positions of the global stream from
    ``(k * world + rank) * batch_size`` on. The position and the seed determine the sample
    (``index_at`` of the dataset) and its augmentation. An incomplete batch never occurs: an epoch ends
    within a batch.

    Args:
        augment: random augmentation; None if samples are already augmented.
        size: (h, w) of the batches.
        seed: seed of order and augmentation.
        start: number of the first batch, to resume a run.
        rank, world: this process and the number of processes.
        workers: processes that prepare batches; 0 prepares them in this one. They change no result.
        on_fault: ``stop`` at a sample that cannot be read, or ``skip`` it: its place is taken by the sample
            at the next readable position. Skipping ends with an error when 16 samples in a row or half of all
            are faulty.

    Raises:
        InputError: while iterating, for a faulty sample.
    """

    def __init__(self, dataset: Dataset, tasks: Mapping[str, Task], augment: Augment | None, size: tuple[int, int],
                 batch_size: int, seed: int, start: int = 0, rank: int = 0, world: int = 1, workers: int = 0,
                 pin_memory: bool = False, on_fault: OnFault = "stop"):
        super().__init__(dataset, tasks, batch_size, rank, world, workers, pin_memory, on_fault)
        self.augment, self.size, self.seed, self.start = augment, size, seed, start

    def _numbers(self) -> Iterable[int]:
        return itertools.count(self.start)

    def _samples(self, number: int, faults: _Faults) -> list[Sample]:
        first = (number * self.world + self.rank) * self.batch_size
        return [self._sample(position, faults) for position in range(first, first + self.batch_size)]

    def _sample(self, position: int, faults: _Faults) -> Sample:
        generator = torch.Generator().manual_seed(hashed(self.seed, position))
        for candidate in range(position, position + _TRIES):
            index = self.dataset.index_at(candidate, self.seed)
            with faults.at(index):
                sample = self._read(index)
                return sample if self.augment is None else augment(sample, self.tasks, self.size, generator,
                                                                   self.augment)
        raise InputError(f"{self.dataset.split} split of {self.dataset.config.name}",
                         f"{_TRIES} faulty samples in a row", "samples that can be read",
                         f"repair the dataset; for instance {faults.seen[-1][1]}")


class EvaluationBatches(Batches):
    """Every sample of ``dataset[rank::world]`` once, in order; ``len`` is the number of batches of this process.

    Images are resized to ``size`` (None keeps them native); labels stay at their native size. Where sizes
    differ within a batch, images and labels are padded at the right and the bottom: ``info.content`` tells
    the size of the image in the batch, ``info.native`` that of the labels. With ``on_fault="skip"`` a faulty
    sample is left out and recorded in ``faults``, which a report must show.
    """

    def __init__(self, dataset: Dataset, tasks: Mapping[str, Task], size: tuple[int, int] | None,
                 batch_size: int, rank: int = 0, world: int = 1, workers: int = 0, pin_memory: bool = False,
                 on_fault: OnFault = "stop"):
        super().__init__(dataset, tasks, batch_size, rank, world, workers, pin_memory, on_fault)
        self.size = size
        self.indices = range(rank, len(dataset), world)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def _numbers(self) -> Iterable[int]:
        return range(len(self))

    def _samples(self, number: int, faults: _Faults) -> list[Sample]:
        samples = []
        for index in self.indices[number * self.batch_size:(number + 1) * self.batch_size]:
            with faults.at(index):
                samples.append(resize_image(self._read(index), self.size))
        return samples


_Fault = tuple[int, str]


class _Faults:
    """Faulty samples of one batch. ``with faults.at(index)`` lets an InputError pass or records it."""

    def __init__(self, on_fault: OnFault):
        self.seen: list[_Fault] = []
        self._skip = on_fault == "skip"

    @contextmanager
    def at(self, index: int) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            if not self._skip:
                raise
            self.seen.append((index, str(error)))


class _Fetch(torch.utils.data.Dataset):
    """Batches as torch's loader wants them: a worker makes a whole batch from its number."""

    def __init__(self, batches: Batches):
        self._batches = batches

    def __getitem__(self, number: int) -> tuple[Batch | InputError | None, list[_Fault]]:
        return self._batches.fetch(number)


class _Numbers(torch.utils.data.Sampler[int]):
    def __init__(self, numbers: Iterable[int]):
        self._numbers = numbers

    def __iter__(self) -> Iterator[int]:
        return iter(self._numbers)


def _as_it_is(batch: object) -> object:
    return batch
