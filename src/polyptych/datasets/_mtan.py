"""The arrays in which the authors of MTAN hand out NYUv2 and Cityscapes.

Source: Liu, Johns and Davison, CVPR 2019, arXiv 1803.10704
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from polyptych.data._files import files_by_stem, read_npy_color, reading
from polyptych.datasets._layouts import Files, Layout

_PARTS = {"train": "train", "test": "val"}


class MTANArrays(Layout):
    """``{train,val}/FOLDER/I.npy``; ``val`` holds the images that are tested on. Frames are called ``train/12``. Images
    are stored as floats in [0, 1]; reading rounds them to 8 bits, from which they were made.

    Attributes:
        folders: of each kind of file.
    """

    folders: Mapping[str, str]

    def find(self) -> Files:
        return {kind: {f"{part}/{stem}": path for part in _PARTS.values()
                       for stem, path in files_by_stem(self.root / part / folder, (".npy",)).items()}
                for kind, folder in self.folders.items()}

    def frames(self, part: str) -> list[str]:
        """0 .. n-1 for the n images that are there, as in the published loaders."""
        folder = _PARTS[part]
        count = sum(frame.startswith(f"{folder}/") for frame in self.files["image"])
        return [f"{folder}/{i}" for i in range(count)]

    def expected(self, frame: str, kind: str) -> Path:
        part, stem = frame.split("/")
        return self.root / part / self.folders[kind] / f"{stem}.npy"

    def size(self, frame: str) -> tuple[int, int]:
        path = self.path(frame, "image")
        with reading(path, "an array (h, w, 3) in .npy format"):
            height, width = np.load(path, mmap_mode="r", allow_pickle=False).shape[:2]
        return height, width

    def image(self, frame: str) -> UInt8[Tensor, "3 h w"]:
        return read_npy_color(self.path(frame, "image"))
