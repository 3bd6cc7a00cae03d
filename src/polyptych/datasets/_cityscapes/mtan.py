"""Cityscapes as preprocessed by the authors of MTAN: arrays of 128x256 or 256x512."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from polyptych.data._files import class_ids, files_by_stem, flat, read_npy, read_npy_color, reading
from polyptych.datasets._cityscapes.layout import Files, Layout
from polyptych.datasets._holdout import blocks
from polyptych.errors import InputError

_LABELS = {19: ("label_19",), 7: ("label_7", "label"), 2: ("label_2",)}  # LibMTL calls label_7 label


class MTANLayout(Layout):
    """``{train,val}/{image,depth,label_2,label_7,label_19}/I.npy``; ``label`` is taken for ``label_7``, as
    LibMTL's users have it. Frames are called ``train/12``. Images are stored as floats in [0, 1]; reading
    rounds them to 8 bits. The folder ``depth`` holds **inverse** depth: 0 is unknown, otherwise (inferred, the
    authors do not say) the 16-bit code of the official disparity divided by 65535.
    """

    looks_for = "train/image/ with .npy files and train/depth/ or train/label_*/"
    tested_on = "mtan"
    semseg_note = "as stored; how the authors of MTAN grouped the classes is not documented"

    def __init__(self, root: Path, classes: int):
        self._folders = {"image": "image", "inverse_depth": "depth", "semseg": _label_folder(root, classes)}
        self.kinds = {"semseg": ("semseg",), "inverse_depth": ("inverse_depth",)}
        super().__init__(root, classes)

    @classmethod
    def matches(cls, root: Path) -> bool:
        labels = [name for names in _LABELS.values() for name in names]
        return (root / "train/image").is_dir() and any((root / "train" / n).is_dir() for n in ("depth", *labels))

    @classmethod
    def classes_in(cls, root: Path) -> list[int]:
        """Numbers of classes that the folders hold labels for."""
        return [classes for classes in _LABELS if (root / "train" / _label_folder(root, classes)).is_dir()]

    def find(self) -> Files:
        return {kind: {f"{split}/{stem}": path for split in ("train", "val")
                       for stem, path in files_by_stem(self.root / split / folder, (".npy",)).items()}
                for kind, folder in self._folders.items()}

    def frames(self, official: str) -> list[str]:
        """0 .. n-1 for the n images that are there, as in the published loaders."""
        count = sum(frame.startswith(f"{official}/") for frame in self.files["image"])
        return [f"{official}/{i}" for i in range(count)]

    def runs(self, frames: list[str]) -> Sequence[Sequence[str]]:
        """Blocks of consecutive numbers: the files do not say which city they show."""
        return blocks(frames)

    def expected(self, frame: str, kind: str) -> Path:
        split, stem = frame.split("/")
        return self.root / split / self._folders[kind] / f"{stem}.npy"

    def size(self, frame: str) -> tuple[int, int]:
        path = self.path(frame, "image")
        with reading(path, "an array (h, w, 3) in .npy format"):
            height, width = np.load(path, mmap_mode="r", allow_pickle=False).shape[:2]
        return height, width

    def image(self, frame: str) -> UInt8[Tensor, "3 h w"]:
        return read_npy_color(self.path(frame, "image"))

    def semseg(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        path = self.path(frame, "semseg")
        return class_ids(read_npy(path), path, lowest=0, highest=self.classes - 1, void=-1)

    def inverse_depth(self, frame: str, unit: str) -> tuple[np.ndarray, np.ndarray]:
        path = self.path(frame, "inverse_depth")
        values = flat(read_npy(path), path)
        if not (values.min() >= 0 and values.max() <= 1):  # NaN included
            raise InputError(path, f"values from {values.min():g} to {values.max():g}",
                             "inverse depth from 0 to 1", "check that the file belongs to this dataset")
        return values.astype(np.float32), values > 0


def _label_folder(root: Path, classes: int) -> str:
    names = _LABELS[classes]
    return next((name for name in names if (root / "train" / name).is_dir()), names[0])
