"""The arrays in which the authors of MTAN distribute NYUv2 and Cityscapes.

Source: Liu, Johns and Davison, CVPR 2019, arXiv 1803.10704
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from polyptych.data.arrays import npy_shape, read_npy_color
from polyptych.data.files import files_by_stem
from polyptych.datasets._layouts import Files, Layout
from polyptych.errors import InputError

_PARTS = {"train": "train", "test": "val"}


class MTANArrays(Layout):
    """``{train,val}/FOLDER/I.npy``; ``val`` holds the test images. Frames are called ``train/12``. Images
    are stored as floats in [0, 1]; reading rounds them to 8 bits, from which they were made.

    Attributes:
        folders: folder of each kind of file.
    """

    folders: Mapping[str, str]

    def find(self) -> Files:
        return {kind: {f"{part}/{stem}": path for part in _PARTS.values()
                       for stem, path in files_by_stem(self.root / part / folder, (".npy",)).items()}
                for kind, folder in self.folders.items()}

    def frames(self, part: str) -> list[str]:
        """0 .. n-1 for the n image files, as in the published loaders."""
        folder = _PARTS[part]
        count = sum(where == folder and stem.isdecimal()
                    for where, _, stem in (frame.partition("/") for frame in self.files["image"]))
        return [f"{folder}/{i}" for i in range(count)]

    def expected(self, frame: str, kind: str) -> Path:
        part, stem = frame.split("/")
        return self.root / part / self.folders[kind] / f"{stem}.npy"

    def size(self, frame: str) -> tuple[int, int]:
        path = self.path(frame, "image")
        shape = npy_shape(path)
        if len(shape) != 3:
            raise InputError(path, f"an array of shape {shape}", "an image of shape (h, w, 3)",
                             "check that the file holds an image")
        return shape[0], shape[1]

    def image(self, frame: str) -> UInt8[Tensor, "3 h w"]:
        return read_npy_color(self.path(frame, "image"))
