"""A decoded copy of a dataset in memory-mapped arrays: every file is decoded once, not once per epoch.

Images are kept as uint8, class ids as uint8 where they fit, masks as bits, and dense float maps as float16: a
relative error of at most 2^-11, that is 2.4 mm at 5 m of depth and 0.03 degrees for a normal. Labels that are
not dense maps (keypoints, a class of the image) are kept exactly. Do not measure final numbers on cached
labels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from polyptych.data.files import read_json
from polyptych.data.loading import check
from polyptych.datasets._base import Dataset
from polyptych.errors import InputError
from polyptych.folder_lock import is_taken
from polyptych.tasks._base import Task
from polyptych.types import Sample, SampleInfo

VERSION = 1  # of the format below; caches of other versions are not used

INDEX = "index.json"  # written last
_LOOK_EVERY = 0.2  # seconds, while another process makes the copy


def cached(dataset: Dataset, folder: Path, tasks: Mapping[str, Task],
           on_fault: Literal["stop", "skip"] = "stop",
           progress: Callable[[int, int], None] | None = None) -> CachedDataset:
    """The dataset read from its decoded copy in ``folder``, which is made at first use.

    The copy belongs to the dataset's configuration, split, and tasks; other choices get other copies.
    Changed files under an unchanged configuration are not noticed; delete the folder then. A copy becomes
    visible only when it is complete; a second process waits for the first and then uses its copy.

    Args:
        dataset: all its samples must have the same size.
        folder: folder for the copies, on a local disk.
        tasks: the tasks of the dataset, which check the labels.
        on_fault: ``stop`` at a sample that cannot be read; ``skip`` records it, and reading it from the copy
            raises the same error again, to be skipped by the loader.
        progress: called with (samples done, samples in all); by default a bar on a terminal.

    Raises:
        InputError: a faulty sample, samples of different sizes, a value that float16 cannot hold, or a disk
            that is full or not writable. Nothing is left behind.
    """
    final = Path(folder) / name_of_copy(dataset)
    try:
        make_once(final, functools.partial(_write, dataset, tasks, on_fault),
                  f"caching {dataset.config.name} {dataset.split}", progress)
    except OSError as error:
        raise InputError(folder, f"{error.strerror or error} while writing the cache",
                         "a writable folder on a disk with room for the decoded dataset",
                         "free some space, name another folder, or train without a cache") from error
    return CachedDataset(dataset, final)


class CachedDataset(Dataset):
    """A dataset read from its decoded copy; made by :func:`cached`."""

    def __init__(self, dataset: Dataset, folder: Path):
        self.labels, self.protocol, self.doubts = dataset.labels, dataset.protocol, dataset.doubts
        super().__init__(dataset.config, split=dataset.split, tasks=dataset.tasks)
        self._original = dataset
        index: dict[str, Any] = read_json(folder / INDEX, "the index of a decoded copy of a dataset")
        self.folder = folder
        self._samples: list[dict[str, Any]] = index["samples"]
        self._size: tuple[int, int] = tuple(index["size"])
        images = folder / "image.bin"
        self._images = Rows(images, (*self._size, 3), "uint8") if images.exists() else None
        mask_bytes = -(-self._size[0] * self._size[1] // 8)
        self._masks = {name: Rows(folder / f"{name}.valid.bin", (mask_bytes,), "uint8")
                       for name in index["labels"]}
        self._dense = {name: Rows(folder / f"{name}.bin", tuple(how["shape"]), how["stored"])
                       for name, how in index["labels"].items() if how["dense"]}
        self._ragged = {name: np.memmap(folder / f"{name}.bin", how["stored"], "r")
                        for name, how in index["labels"].items() if not how["dense"]}
        self._types = {name: getattr(torch, how["type"]) for name, how in index["labels"].items()}

    def __len__(self) -> int:
        return len(self._samples)

    def labelled(self, task: str) -> int:
        return sum(task in sample.get("labels", ()) for sample in self._samples)

    def index_at(self, position: int, seed: int) -> int:
        return self._original.index_at(position, seed)

    def read(self, index: int) -> Sample:
        sample = self._samples[index]
        if "fault" in sample:
            where, got, needs, do = sample["fault"]
            raise InputError(where, got, needs, f"{do}; then delete the cache {self.folder}")
        target, valid = {}, {}
        for name, label in sample["labels"].items():
            target[name] = self._target(name, label)
            valid[name] = self._mask(name, label["row"])
        if self._images is None:
            image = torch.zeros((), dtype=torch.uint8).expand(3, *self._size)
        else:
            image = self._images[sample["row"]].permute(2, 0, 1)
        return Sample(image, target, valid, SampleInfo(sample["id"], self._size, self._size))

    def _target(self, name: str, label: dict[str, Any]) -> Tensor:
        if name in self._dense:
            return self._dense[name][label["row"]].to(self._types[name])
        start, shape = label["start"], label["shape"]
        values = self._ragged[name][start:start + int(np.prod(shape))]
        return torch.from_numpy(np.array(values)).reshape(shape)

    def _mask(self, name: str, row: int) -> Tensor:
        bits = np.unpackbits(self._masks[name][row].numpy(), count=self._size[0] * self._size[1])
        return torch.from_numpy(bits.view(bool)).reshape(self._size)


class Rows:
    """Equal arrays one after the other in a file; an item is copied out of it."""

    def __init__(self, path: Path, shape: tuple[int, ...], stored: str):
        self._shape, count = shape, int(np.prod(shape))
        self._made_of = path, shape, stored
        rows = path.stat().st_size // (count * np.dtype(stored).itemsize)
        # An empty file cannot be mapped: a task may have no label at all.
        shape = (rows, count)
        self._rows = np.memmap(path, stored, "r", shape=shape) if rows else np.empty(shape, stored)

    def __reduce__(self) -> tuple[type[Rows], tuple[Path, tuple[int, ...], str]]:
        """A process that is not forked maps the file itself; numpy would send it all of it."""
        return Rows, self._made_of

    def __getitem__(self, row: int) -> Tensor:
        return torch.from_numpy(np.array(self._rows[row])).reshape(self._shape)


# -- making a copy -----------------------------------------------------------------------------------------


def is_made(final: Path) -> bool:
    """Whether a copy is complete."""
    return (final / INDEX).is_file()


def make_once(final: Path, fill: Callable[[Path, Callable[[int, int], None]], None], title: str,
              progress: Callable[[int, int], None] | None = None) -> None:
    """Make the folder ``final`` unless it is there. It appears only when it is complete; after an error nothing is left
    behind. A second process waits for the first.

    Args:
        fill: writes the files into the folder that it is given, the index among them, and reports progress.
        title: of the progress bar.
        progress: called with (samples done, samples in all); by default a bar on a terminal.
    """
    if is_made(final):
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    with _locked(final), _reporting(progress, title) as report:
        if is_made(final):
            return
        # The lock is ours, so whatever carries the name of this copy was left by a process that was killed.
        for leftover in final.parent.glob(f"{final.name}.partial-*"):
            shutil.rmtree(leftover)
        partial = Path(tempfile.mkdtemp(prefix=f"{final.name}.partial-", dir=final.parent))
        try:
            fill(partial, report)
            _sync_folder(partial)
            os.rename(partial, final)
            _sync_folder(final.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _write(dataset: Dataset, tasks: Mapping[str, Task], on_fault: str, folder: Path,
           report: Callable[[int, int], None]) -> None:
    with contextlib.ExitStack() as files:
        writer = _Writer(folder, files)
        for index in range(len(dataset)):
            writer.add(dataset, index, tasks, on_fault)
            report(index + 1, len(dataset))
        writer.finish(dataset)


class _Writer:
    """Appends samples to the files of a copy. Ordinary writes, because a full disk raises an error there,
    whereas it kills a process that writes to mapped memory."""

    def __init__(self, folder: Path, files: contextlib.ExitStack):
        self._folder, self._stack = folder, files
        self._files: dict[str, BinaryIO] = {}
        self._size: tuple[int, int] | None = None
        self._first = ""
        self._labels: dict[str, _Stored] = {}
        self._samples: list[dict[str, Any]] = []
        self._images = 0

    def add(self, dataset: Dataset, index: int, tasks: Mapping[str, Task], on_fault: str) -> None:
        try:
            sample = dataset.read(index)
            check(sample, tasks)
        except InputError as error:
            if on_fault == "stop":
                raise
            self._samples.append({"fault": [error.where, error.got, error.needs, error.do]})
            return
        self._check_size(sample)
        if not getattr(dataset, "without_images", False):
            # Interleaved, as decoders give it: torchvision resizes uint8 images of this form twice as fast.
            self._write("image.bin", sample.image.permute(1, 2, 0).numpy())
        labels = {name: self._label(name, target, sample.valid[name], sample.info.id, dataset)
                  for name, target in sample.target.items()}
        self._samples.append({"id": sample.info.id, "row": self._images, "labels": labels})
        self._images += 1

    def finish(self, dataset: Dataset) -> None:
        if self._size is None:
            raise InputError(f"{dataset.split} split of {dataset.config.name}",
                             f"{len(self._samples)} samples, none of which can be read", "at least one",
                             "check the dataset's folder")
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        index = {"version": VERSION, "size": self._size, "samples": self._samples,
                 "labels": {name: stored.describe() for name, stored in self._labels.items()}}
        with (self._folder / INDEX).open("w", encoding="utf-8") as text:
            json.dump(index, text)
            text.flush()
            os.fsync(text.fileno())

    def _check_size(self, sample: Sample) -> None:
        size = (int(sample.image.shape[1]), int(sample.image.shape[2]))
        if self._size is None:
            self._size, self._first = size, sample.info.id
        elif size != self._size:
            raise InputError(f"sample {sample.info.id}",
                             f"{size[0]}x{size[1]} pixels where sample {self._first} has "
                             f"{self._size[0]}x{self._size[1]}",
                             "one size for all samples of a cached dataset", "train without a cache")

    def _label(self, name: str, target: Tensor, valid: Tensor, sample: str,
               dataset: Dataset) -> dict[str, Any]:
        if name not in self._labels:
            self._labels[name] = _Stored.of(target, valid, len(dataset.labels[name].classes),
                                            getattr(dataset, "exact_labels", False))
        stored = self._labels[name]
        label = stored.place(target)
        self._write(f"{name}.bin", stored.encode(target, valid, f"label '{name}' of sample {sample}"))
        self._write(f"{name}.valid.bin", np.packbits(valid.numpy()))
        return label

    def _write(self, name: str, values: np.ndarray) -> None:
        if name not in self._files:
            self._files[name] = self._stack.enter_context((self._folder / name).open("wb"))
        self._files[name].write(np.ascontiguousarray(values).data)


@dataclasses.dataclass
class _Stored:
    """How the labels of one task are stored: dense maps row by row in a narrow type, others one after the
    other."""

    dense: bool
    type: str
    stored: str
    shape: tuple[int, ...]
    rows: int = 0
    values: int = 0

    @staticmethod
    def of(target: Tensor, valid: Tensor, classes: int, exact: bool) -> _Stored:
        type_name = str(target.dtype).removeprefix("torch.")
        dense = target.shape[-2:] == valid.shape
        stored = type_name
        if dense and target.is_floating_point() and not exact:
            stored = "float16"
        elif dense and 0 < classes <= 256:
            stored = "uint8"
        return _Stored(dense, type_name, stored, tuple(target.shape))

    def describe(self) -> dict[str, Any]:
        return {"dense": self.dense, "type": self.type, "stored": self.stored, "shape": self.shape}

    def place(self, target: Tensor) -> dict[str, Any]:
        """Where the next label lies."""
        label: dict[str, Any] = {"row": self.rows}
        if not self.dense:
            label |= {"start": self.values, "shape": list(target.shape)}
        self.rows += 1
        self.values += target.numel()
        return label

    def encode(self, target: Tensor, valid: Tensor, where: str) -> np.ndarray:
        if not self.dense:
            return target.numpy()
        # Whatever stands under an invalid pixel is arbitrary and need not fit the narrow type.
        exact = torch.where(valid, target, 0)
        kind = getattr(torch, self.stored)
        limits = torch.finfo(kind) if kind.is_floating_point else torch.iinfo(kind)
        if exact.numel() and not limits.min <= exact.min().item() <= exact.max().item() <= limits.max:
            raise InputError(where, f"values from {exact.min():g} to {exact.max():g}",
                             f"values from {limits.min:g} to {limits.max:g} to be cached as {self.stored}",
                             "train without a cache")
        return exact.numpy().astype(self.stored)


def name_of_copy(dataset: Dataset) -> str:
    """The folder of a dataset's decoded copy."""
    config = dataset.config
    # A relative path means another place in another working folder.
    choices = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    choices = {name: value.resolve() if isinstance(value, Path) else value for name, value in choices.items()}
    facts = {"version": VERSION, "dataset": config.name, "config": choices, "protocol": dataset.protocol,
             "split": dataset.split, "tasks": sorted(dataset.tasks), "length": len(dataset),
             **getattr(dataset, "cache_facts", {})}
    text = json.dumps(facts, sort_keys=True, default=str)
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return f"{config.name}-{dataset.split}-{digest}"


@contextlib.contextmanager
def _locked(final: Path) -> Iterator[None]:
    """Held by one process at a time; the system frees it when that process ends, however it ends."""
    with final.with_name(f"{final.name}.lock").open("w", encoding="utf-8") as file:
        said = False
        while not is_taken(file):
            if not said:
                Console(stderr=True).print(f"waiting for the process that is making the cache {final}")
            said = True
            time.sleep(_LOOK_EVERY)
        yield


@contextlib.contextmanager
def _reporting(given: Callable[[int, int], None] | None, title: str) -> Iterator[Callable[[int, int], None]]:
    if given is not None:
        yield given
        return
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task(title)
        yield lambda done, total: bar.update(line, completed=done, total=total)


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # which opens no folders, and writes their entries through
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
