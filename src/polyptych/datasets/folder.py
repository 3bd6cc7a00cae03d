"""Your own images and labels, for any tasks, described in one small TOML file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from polyptych.datasets._base import Dataset
from polyptych.datasets._folder.arrays import read_image
from polyptych.datasets._folder.description import FolderSpec, read_description
from polyptych.datasets._folder.labels import Source
from polyptych.errors import InputError
from polyptych.types import Sample, SampleInfo


class Folder(Dataset):
    """Files as they are, in formats that the description states; an image may lack labels of any task::

        image = "images/{id}.jpg"             # what {id} stands for names the sample; it may contain folders

        [splits]                              # without this table: 20 % test, 10 % val
        test = "lists/test.txt"               # one id per line; or "test/": ids in a folder; or a share
        val = 0.1                             # of the rest; what nobody names is for training

        [tasks.semseg]
        files = "labels/{id}.png"             # png, jpg, webp, tif, npy, npz, mat or h5 (with key = "...")
        classes = ["sky", "ground", "tree"]   # stored as 0, 1, 2; or ids = [7, [8, 9], 21];
        ignore = [255]                        # or encoding = "colors" with colors = [[0, 0, 255], ...]

        [tasks.depth]
        files = "depth/{id}.png"
        unit = "mm"                           # m, mm or disparity (baseline, focal); scale, offset, invalid

        [tasks.normals]
        files = "normals/{id}.npy"
        axes = ["x", "-y", "-z"]              # stored channels that point right, down, forward

    Every table is one task. Its name is that of a kind of task, or it says which: ``task = "semseg"`` in
    ``[tasks.material]`` makes a second segmentation. The options of each kind are the fields in
    :mod:`polyptych.datasets._folder.maps` (semseg, parts, normals, boundaries, saliency),
    :mod:`polyptych.datasets._folder.values` (depth, inverse_depth, edge_texture, keypoints2d) and
    :mod:`polyptych.datasets._folder.objects` (keypoints, classification).

    Images of different sizes need ``--size``. OpenEXR is not read: convert it to .npy.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        root: Path | None = None
        """Folder of the data; without it that of the description."""
        description: Path | None = None
        """The TOML file; without it dataset.toml in the root."""

        def kinds(self) -> dict[str, str]:
            return _described(self)[1].kinds if self.description or self.root else {}

    config: Config

    def __init__(self, config: Config, *, split: str, tasks: tuple[str, ...]):
        self.root, self.description = _described(config)
        self.labels = {name: labels.info(self.root, self.description.where(name))
                       for name, labels in self.description.tasks.items()}
        super().__init__(config, split=split, tasks=tasks)
        self.protocol = f"folder-{self.description.digest}"
        self.images = self._find_images()
        where = f"{self.description.path}: splits"
        self.ids = self.description.splits.of(split, self.images, self.root, where)
        if not self.ids:
            raise InputError(f"{where}.{split}", "no images", f"at least one ({len(self.images)} images were found)",
                             f"give {split} a list or a share of them")
        self.sources = {task: self._open(task) for task in tasks}

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, index: int) -> Sample:
        name = self.ids[index]
        image = read_image(self.images[name], self.description.image_key)
        size = (int(image.shape[1]), int(image.shape[2]))
        target, valid = {}, {}
        for task, source in self.sources.items():
            if source.has(name):
                target[task], valid[task] = source.read(name, size)
        return Sample(image, target, valid, SampleInfo(name, size, size))

    def _find_images(self) -> dict[str, Path]:
        """All images by id; label files that lie among them are none."""
        pattern = self.description.image
        others = [other for name, labels in self.description.tasks.items()
                  for other in labels.patterns(self.description.where(name))]
        found = pattern.find(self.root)
        below = {name: os.path.relpath(path, self.root).replace(os.sep, "/") for name, path in found.items()}
        return {name: path for name, path in found.items()
                if not any(other.explains_better(pattern, below[name]) for other in others)}

    def _open(self, task: str) -> Source:
        where = self.description.where(task)
        source = self.description.tasks[task].open(self.root, where)
        if not any(map(source.has, self.images)):
            raise InputError(where, "labels of no image", "ids that images have",
                             f"compare the patterns; the first image is '{next(iter(self.images))}'")
        if self.split == "train" and not any(map(source.has, self.ids)):
            raise InputError(where, "no label of a training image", "at least one", "change the splits, or leave "
                             f"'{task}' out of --tasks")
        return source


def _described(config: Folder.Config) -> tuple[Path, FolderSpec]:
    """The folder of the data and what its description says."""
    if config.description is None and config.root is None:
        raise InputError("dataset folder", "neither a root nor a description", "a folder with dataset.toml, or a "
                         "TOML file", "pass --dataset.root DIR or --dataset.description FILE")
    path = config.description or Path(config.root or "") / "dataset.toml"
    root = path.parent if config.root is None else Path(config.root)
    if not root.is_dir():
        raise InputError(f"root of folder ({root})", "no such folder", "the folder of the data", "correct the path")
    return root, read_description(path)
