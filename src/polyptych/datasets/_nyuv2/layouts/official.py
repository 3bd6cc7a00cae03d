"""The authors' .mat files, one of which is HDF5 (MATLAB 7.3)."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from polyptych.data.arrays import class_ids, hdf5_array, native, open_hdf5, read_mat
from polyptych.data.files import files_by_stem, reading, require_plain, require_room
from polyptych.data.pictures import read_color
from polyptych.datasets._decoding import meters, picture_vectors
from polyptych.datasets._layouts import Files
from polyptych.datasets._nyuv2.layouts._base import NYUv2Layout
from polyptych.datasets._nyuv2.official_labels import LAST_LABEL, TO_FORTY
from polyptych.datasets._nyuv2.scenes import SIZE, TEST, TRAIN, folders, recorded_scene
from polyptych.errors import InputError

_FILE, _SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
# variable, number of axes and kinds of numbers; MATLAB orders axes in reverse: (frame, ..., w, h)
_VARIABLES = {"image": ("images", 4, "u"), "semseg": ("labels", 3, "ui"), "depth": ("depths", 3, "f"),
              "raw_depth": ("rawDepths", 3, "f")}


class OfficialLayout(NYUv2Layout):
    """The frame with the official number 1 is called ``0001``. Frames are read one at a time.

    The file has no normals. Those of Eigen and Fergus, ``normals/NNNN.png`` (counted from 0000, v = 127.5 (n + 1)),
    are read if that folder is next to it.
    """

    looks_for = f"{_FILE} and {_SPLITS}"
    note = ("894 labels, mapped to 40 or 13 classes; frames have a white border (see --dataset.crop); has normals only "
            "if normals/NNNN.png, numbered from 0, are next to it")
    auto_order = 40
    normals_note = ("not official: as stored in normals/, in the form in which Eigen and Fergus published theirs; "
                    "masks that came with them are not read, only vectors near zero count as unknown")

    _open: tuple[int, h5py.File] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}  # an open file cannot be sent to another process

    @classmethod
    def matches(cls, root: Path) -> bool:
        return (root / _FILE).is_file()

    def find(self) -> Files:
        path = self.root / _FILE
        with open_hdf5(path, "a MATLAB 7.3 (HDF5) file") as file:
            shapes = {kind: _shape(file, path, *_VARIABLES[kind]) for kind in _VARIABLES}
        image = shapes["image"]
        if image is None:
            raise InputError(path, "a file without it", "the variable 'images'", "download the labeled dataset again")
        if image[1] != 3:
            raise InputError(path, f"'images' of shape {image}", "the shape (frames, 3, w, h)",
                             "download the labeled dataset again")
        for kind, shape in shapes.items():
            if shape is not None and (shape[0], *shape[-2:]) != (image[0], *image[-2:]):
                raise InputError(path, f"'{_VARIABLES[kind][0]}' of shape {shape}",
                                 f"{image[0]} frames of {image[3]}x{image[2]} pixels, as in 'images'",
                                 "download the labeled dataset again")
        self._size = (image[3], image[2])
        names = [f"{i + 1:04d}" for i in range(image[0])]
        files: Files = {kind: dict.fromkeys(names, path) if shape else {} for kind, shape in shapes.items()}
        pictures = files_by_stem(self.root / "normals", (".png",))
        normals = {name: pictures[stem] for i, name in enumerate(names) if (stem := f"{i:04d}") in pictures}
        return {**files, "normals": normals}

    def frames(self, part: str) -> list[str]:
        path = self.root / _SPLITS
        key = {"train": "trainNdxs", "test": "testNdxs"}[part]
        numbers = read_mat(path, key).ravel()
        if numbers.dtype.kind not in "uif" or not (
                np.isfinite(numbers) & (numbers >= 1) & (numbers == np.floor(numbers))).all():
            raise InputError(path, f"'{key}' with other values", "official numbers of frames, counted from 1",
                             "download splits.mat again")
        return [f"{int(number):04d}" for number in numbers]

    def expected(self, frame: str, kind: str) -> Path:
        if kind in _VARIABLES:
            return self.root / _FILE / f"{_VARIABLES[kind][0]}[{frame}]"
        return self.root / "normals" / f"{int(frame) - 1:04d}.png"  # the only label outside the file

    def size(self, frame: str) -> tuple[int, int]:
        return self._size

    def image(self, frame: str) -> UInt8[Tensor, "3 h w"]:
        return torch.from_numpy(np.ascontiguousarray(self._frame(frame, "image").transpose(0, 2, 1)))

    def semseg(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        where, labels = self._where(frame, "semseg"), self._frame(frame, "semseg").T
        if labels.size and not 0 <= labels.min() <= labels.max() <= LAST_LABEL:
            raise InputError(where, f"labels from {labels.min()} to {labels.max()}",
                             f"labels from 1 to {LAST_LABEL}, or 0 where there is none",
                             "download the labeled dataset again")
        return class_ids(TO_FORTY[labels], where, lowest=1, highest=40, void=0)

    def depth(self, frame: str) -> np.ndarray:
        return meters(self._frame(frame, "depth").T, self._where(frame, "depth"))

    def raw_depth(self, frame: str) -> np.ndarray:
        return meters(self._frame(frame, "raw_depth").T, self._where(frame, "raw_depth"))

    def normals(self, frame: str) -> Float[Tensor, "3 h w"]:
        return picture_vectors(read_color(self.path(frame, "normals")))

    def _where(self, frame: str, kind: str) -> str:
        return f"{self.root / _FILE} ({_VARIABLES[kind][0]}, frame {frame})"

    def _frame(self, frame: str, kind: str) -> np.ndarray:
        path, needs = self.root / _FILE, f"'{_VARIABLES[kind][0]}' of frame {frame}"
        with reading(path, needs):
            variable = self._file()[_VARIABLES[kind][0]]
            size = math.prod(variable.shape[1:]) * variable.dtype.itemsize
            require_room(path, f"a frame of '{_VARIABLES[kind][0]}'", size, require_plain(path, needs), needs)
            return native(variable[int(frame) - 1])

    def _file(self) -> h5py.File:
        """The file, opened by each process for itself: HDF5 does not survive a fork."""
        if self._open is None or self._open[0] != os.getpid():
            self._open = os.getpid(), h5py.File(self.root / _FILE, "r")
        return self._open[1]

    @classmethod
    def write_fixture(cls, root: Path, size: tuple[int, int] = SIZE) -> None:
        from scipy.io import savemat

        folders(root, "normals")
        first_of = np.unique(TO_FORTY, return_index=True)[1].astype(np.uint16)  # the first label of each class
        scenes = [recorded_scene(number, size) for number in sorted(TRAIN + TEST)]
        with h5py.File(root / _FILE, "w") as file:
            # HDF5 has the reverse order of axes of MATLAB.
            file["images"] = np.stack([scene.image.transpose(2, 1, 0) for scene in scenes])
            file["labels"] = np.stack([first_of[scene.ids].T for scene in scenes])
            file["depths"] = np.stack([scene.depth.T for scene in scenes])
            file["rawDepths"] = np.stack([scene.raw.T for scene in scenes])
        savemat(root / _SPLITS, {f"{part}Ndxs": np.array(numbers, np.uint16)[:, None]
                                 for part, numbers in (("train", TRAIN), ("test", TEST))})
        for i, scene in enumerate(scenes):
            scene.normals_picture().save(root / f"normals/{i:04d}.png")


def _shape(file: h5py.File, path: Path, name: str, axes: int, kinds: str) -> tuple[int, ...] | None:
    """Shape of a variable, or None if the file does not have it."""
    variable = hdf5_array(file, name, path)
    if variable is None:
        return None
    if variable.ndim != axes or variable.dtype.kind not in kinds:
        raise InputError(path, f"'{name}' as {variable.dtype} of shape {variable.shape}", f"an array with {axes} axes",
                         "download the labeled dataset again")
    shape: tuple[int, ...] = variable.shape
    return shape
