"""Your own images and labels, for any tasks, described in one small TOML file."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from polyptych.data.arrays import read_array
from polyptych.data.files import composed
from polyptych.data.pictures import PICTURES, open_picture, read_color, require_size
from polyptych.datasets._base import Dataset, EmptySplit
from polyptych.datasets._folder.description import FolderSpec, read_description
from polyptych.datasets._folder.labels import Source, require_readable
from polyptych.datasets._folder.patterns import Pattern
from polyptych.datasets._folder.splits import Splits
from polyptych.errors import InputError
from polyptych.types import Sample, SampleInfo


class Folder(Dataset):
    """Your files as they are, in the formats that the description states; an image may lack labels of any task::

        image = "images/{id}.jpg"             # what {id} stands for names the sample; it may contain folders

        [splits]                              # without this table: 20% test, 10% val
        test = "lists/test.txt"               # one id or image per line; or "test/": a folder; or a share
        val = 0.1                             # of the rest; what nobody names is for training

        [tasks.semseg]
        files = "labels/{id}.png"             # png, jpg, webp, tif, npy, pfm; npz, mat, h5, exr (with key = "...")
        classes = ["sky", "ground", "tree"]   # or "classes.txt"; stored as 0, 1, 2; or ids = [7, [8, 9], 21];
        ignore = [255]                        # or encoding = "colors" with colors = [[0, 0, 255], ...]

        [tasks.depth]
        files = "depth/{id}.png"
        unit = "mm"                           # m, mm or disparity (baseline, focal); scale, offset, invalid

        [tasks.normals]
        files = "normals/{id}.npy"
        axes = ["x", "-y", "-z"]              # stored channels that point right, down, forward

        [tasks.boundaries]
        from = "semseg"                       # derived; saliency from classes, normals from depth and a camera

    Every table is one task. Its name is that of a kind of task, or ``task`` gives the kind: ``task = "semseg"`` in
    ``[tasks.material]`` defines a second segmentation. The options of each kind are the fields in
    :mod:`polyptych.datasets._folder.maps` (semseg, parts, normals, boundaries, saliency),
    :mod:`polyptych.datasets._folder.values` (depth, inverse_depth, edge_texture, keypoints2d) and
    :mod:`polyptych.datasets._folder.objects` (keypoints, classification), and for derived labels in
    :mod:`polyptych.datasets._folder.derived`.

    Images of different sizes need ``--size``. Images are rotated upright as EXIF says, and labels are expected to match
    the upright image. OpenEXR needs ``polyptych[formats]``; ``polyptych data convert`` draws the polygons of annotation
    tools.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        root: Path | None = None
        """Folder of the data (default: that of the description)."""
        description: Path | None = None
        """The TOML file that describes the data (default: dataset.toml in the root)."""

        def kinds(self) -> dict[str, str]:
            return _described(self)[1].kinds if self.description or self.root else {}

    config: Config

    def __init__(self, config: Config, *, split: str, tasks: tuple[str, ...]):
        self.root, self.description = _described(config)
        self.labels = {name: labels.info(self.root, self.description.where(name))
                       for name, labels in self.description.tasks.items()}
        super().__init__(config, split=split, tasks=tasks)
        self.title = data_name(self.root, self.description)
        self.protocol = f"{slug(self.description.name) or 'folder'}-{self.description.digest}"
        self.images = self._find_images()
        where = f"{self.description.path}: splits"
        splits = self.description.splits or Splits.of_folders(self.images)
        self.ids = splits.of(split, self.images, self.root, where)
        if not self.ids:
            raise EmptySplit(f"{where}.{split}", "no images", f"at least one ({len(self.images)} images were found)",
                             f"give {split} a list or a share of them")
        self.sources = {task: self._open(task) for task in tasks}
        self.doubts = tuple(doubt for task in tasks for doubt in self._doubts(task))

    def __len__(self) -> int:
        return len(self.ids)

    def labelled(self, task: str) -> int:
        return sum(map(self.sources[task].has, self.ids))

    def without_image(self, task: str) -> list[str]:
        """Ids that have a label of a task but no image. A file that matches the pattern of another label better does
        not count."""
        source, others = self.sources[task], self._patterns(task)
        own = self.description.tasks[task].patterns(self.description.where(task))
        return [name for name in source.ids if name not in self.images and not any(
            other.explains_better(pattern, self._below(source.files[name])) for other in others for pattern in own)]

    def without_label(self, task: str) -> list[str]:
        return [name for name in self.ids if not self.sources[task].has(name)]

    def read(self, index: int) -> Sample:
        name = self.ids[index]
        path = self.images[name]
        image = read_image(path, self.description.image_key)
        size = (int(image.shape[1]), int(image.shape[2]))
        target, valid = {}, {}
        for task, source in self.sources.items():
            if source.has(name):
                target[task], valid[task] = source.read(name, size)
                require_size((int(valid[task].shape[0]), int(valid[task].shape[1])), size,
                             source.files.get(name, self.description.where(task)), path)
        return Sample(image, target, valid, SampleInfo(name, size, size))

    def _find_images(self) -> dict[str, Path]:
        """All images by id, without label files among them.

        Raises:
            InputError: there are none, or one has an unsupported type.
        """
        pattern, others = self.description.image, self._patterns()
        found = {name: path for name, path in pattern.find(self.root).items()
                 if not any(other.explains_better(pattern, self._below(path)) for other in others)}
        for path in found.values():
            require_readable(path)
        return found

    def _patterns(self, but: str = "") -> list[Pattern]:
        """The patterns of all labels, except those of one task."""
        return [pattern for name, labels in self.description.tasks.items() if name != but
                for pattern in labels.patterns(self.description.where(name))]

    def _below(self, path: Path) -> str:
        return composed(os.path.relpath(path, self.root).replace(os.sep, "/"))

    def _doubts(self, task: str) -> Iterator[str]:
        """Warnings for the user before training on a task, from counting labels."""
        where, source, count = self.description.where(task), self.sources[task], self.labelled(task)
        classes = self.labels[task].classes
        if len(classes) == 1 and self.description.kinds[task] in ("semseg", "parts", "classification"):
            yield (f"{where}: '{classes[0]}' is the only class, so every prediction is right: add a class for what "
                   f"is not {classes[0]}, or make it a task of the kind saliency")
        if count < len(self):
            first = next(name for name in self.ids if not source.has(name))
            orphans = self.without_image(task)
            besides = f", labels without an image: {len(orphans)} ('{orphans[0]}')" if orphans else ""
            yield f"{where}: {count} of {len(self)} images in {self.split} have a label; '{first}' has none{besides}"
        yield from source.doubts

    def _open(self, task: str) -> Source:
        where = self.description.where(task)
        source = self.description.open(task, self.root)
        if not any(map(source.has, self.images)):
            image, label = next(iter(self.images)), next(iter(source.ids), "")
            if not label:  # only labels by folder name have neither a list nor files
                raise InputError(where, f"no image in a folder named after a class (the first is '{image}')",
                                 "the class of every image", "set `table` to a CSV file with lines `id,class`, or sort "
                                 "the images into folders named after the classes")
            raise InputError(where, "labels that belong to no image", "ids that images have",
                             f"compare the patterns; the first image is '{image}', the first label '{label}'")
        if self.split == "train" and not any(map(source.has, self.ids)):
            raise InputError(where, "no label of a training image", "at least one", "change the splits, or leave "
                             f"'{task}' out of --tasks")
        return source


def read_image(path: Path, key: str) -> UInt8[Tensor, "3 h w"]:
    """RGB, from a picture (rotated upright as EXIF says) or from an array, uint8 (h w 3) or (h w).

    Raises:
        InputError: the file cannot be read, or has more than eight bits.
    """
    if path.suffix.lower() in PICTURES:
        with open_picture(path) as file:
            if file.mode.startswith(("I", "F")):
                raise InputError(path, f"a picture of mode {file.mode}", "eight bits per channel",
                                 "convert the images to 8-bit PNG or JPEG")
        return read_color(path)
    array = read_array(path, key)
    if array.ndim == 2:
        array = np.stack([array] * 3, -1)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise InputError(path, f"{array.dtype} of shape {array.shape}", "an image as uint8 (h, w, 3)", "convert it")
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)


def data_name(root: Path, description: FolderSpec) -> str:
    """Name of the dataset: that in its description, or else that of its folder."""
    return description.name or root.resolve().name


def slug(name: str) -> str:
    """A name in a form that suits file names and protocol ids."""
    return re.sub(r"[^\w.+-]+", "-", name).strip("-.").lower()


def _described(config: Folder.Config) -> tuple[Path, FolderSpec]:
    """The folder of the data and its description."""
    if config.description is None and config.root is None:
        raise InputError("dataset folder", "neither a root nor a description", "a folder with dataset.toml, or a "
                         "TOML file", "pass --dataset.root DIR or --dataset.description FILE")
    path = config.description or Path(config.root or "") / "dataset.toml"
    root = path.parent if config.root is None else Path(config.root)
    if not root.is_dir():
        raise InputError(f"root of folder ({root})", "no such folder", "the folder of the data", "check the path")
    return root, read_description(path, root)
