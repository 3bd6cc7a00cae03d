"""Write a dataset's three splits as decoded arrays, optionally resized, in the folder that the dataset `prepared`
reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from polyptych.data.cache import cached
from polyptych.data.geometry import Geometry
from polyptych.data.loading import check
from polyptych.data.preparation.verification import build_tasks
from polyptych.data.transforms import move, resize_image
from polyptych.datasets._base import SPLITS, Dataset
from polyptych.datasets._manifest import NAME, Manifest, write_manifest
from polyptych.errors import InputError
from polyptych.record import encode
from polyptych.types import LabelInfo, Sample, SampleInfo

Size = tuple[int, int]

_ASPECT = 0.02  # by how much the ratio of width to height may change; 2% turn a normal by 0.6 degrees at most


class Resized(Dataset):
    """A dataset with images and labels resized to one size, always the whole frame, as MTAN's authors prepared theirs.
    Images are averaged; labels take the nearest pixel.

    Raises:
        InputError: when a sample is read whose aspect ratio is not that of the size.
    """

    def __init__(self, dataset: Dataset, size: Size | None):
        self._dataset, self._size = dataset, size
        self.protocol = f"{dataset.protocol}-prepared" + ("-{}x{}".format(*size) if size else "")
        self.labels = {task: _told(info, size) for task, info in dataset.labels.items()}
        super().__init__(dataset.config, split=dataset.split, tasks=dataset.tasks)
        self._tasks = build_tasks(dataset.config, dataset)

    def __len__(self) -> int:
        return len(self._dataset)

    def read(self, index: int) -> Sample:
        sample = self._dataset.read(index)
        if self._size is None:
            return sample
        # Check labels before they are resized, because that code trusts them.
        check(sample, self._tasks)
        (height, width), (h, w) = sample.info.native, self._size
        if abs(width * h / (height * w) - 1) > _ASPECT:
            raise InputError(f"sample {sample.info.id}", f"{height}x{width} pixels, stretched to {h}x{w}",
                             "a size of the same aspect ratio", "change --size, or leave it out")
        labels = {task: self._tasks[task] for task in sample.target}
        moved = move(sample, labels, Geometry.resize((height, width), self._size))
        image = resize_image(sample, self._size).image
        return Sample(image, moved.target, moved.valid, SampleInfo(sample.info.id, self._size, self._size))


def convert(config: Dataset.Config, out: Path, tasks: tuple[str, ...], size: Size | None = None,
            progress: Callable[[str, int, int], None] = lambda split, done, total: None) -> Manifest:
    """Write the splits of a dataset to ``out``, where ``--dataset prepared --dataset.root OUT`` reads them.

    A split that was finished before an interruption is kept. ``prepared.json`` is written last: a folder without it
    is not complete.

    Args:
        tasks: the tasks whose labels are kept.
        size: (h, w) of images and labels; None keeps their size, which must then be the same for all.
        progress: called with (split, samples done, samples in all).

    Raises:
        InputError: the folder holds a prepared dataset already; a sample cannot be read, or its size does not fit; the
            dataset draws its samples by weight, which a copy cannot; the disk is full.
    """
    if size is not None and min(size) < 1:
        raise InputError("--size", "{} {}".format(*size), "a positive height and width",
                         "for instance --size 480 640")
    require_new(out)
    folders, labels, protocol = {}, {}, ""
    for split in SPLITS:
        dataset = config.build(split=split, tasks=tasks)
        if type(dataset).index_at is not Dataset.index_at:
            raise InputError(f"dataset {config.name}", "a dataset that draws its samples by weight",
                             "one that draws all samples equally often", "train with --loading.cache instead")
        resized = Resized(dataset, size)

        def report(done: int, total: int, split: str = split) -> None:
            progress(split, done, total)

        copy = cached(resized, out, build_tasks(config, resized), progress=report)
        folders[split], protocol = copy.folder.name, resized.protocol
        labels = {task: resized.labels[task] for task in tasks}
    kinds = {task: kind for task, kind in config.kinds().items() if task in tasks}
    manifest = Manifest(encode(config), protocol, labels, folders, _files(out, folders), kinds)
    write_manifest(out, manifest)
    return manifest


def require_new(out: Path) -> None:
    """Refuse an output folder that cannot take a prepared dataset.

    Raises:
        InputError: it already holds a prepared dataset, or is no folder.
    """
    if (out / NAME).exists():
        raise InputError(out, "a folder with a prepared dataset", "a new folder", "remove it, or name another")
    if out.exists() and not out.is_dir():
        raise InputError(out, "a file", "a new folder", "name another")


def _told(info: LabelInfo, size: Size | None) -> LabelInfo:
    told = "kept as float16" if size is None else "resized to {}x{} and kept as float16".format(*size)
    return dataclasses.replace(info, note="; ".join(part for part in (info.note, f"{told} where not ids") if part))


def _files(out: Path, folders: dict[str, str]) -> dict[str, int]:
    return {f"{folder}/{path.name}": path.stat().st_size for folder in folders.values()
            for path in sorted((out / folder).iterdir())}
