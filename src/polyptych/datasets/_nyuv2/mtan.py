"""NYUv2 as preprocessed by the authors of MTAN: 288x384 arrays, 13 classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from polyptych.data._files import class_ids, files_by_stem, read_npy, read_npy_color, reading
from polyptych.datasets._nyuv2.layout import Files, Layout, meters, vectors

_PARTS = {"train": "train", "test": "val"}
_KINDS = {"image": "image", "semseg": "label", "depth": "depth", "normals": "normal"}


class MTANLayout(Layout):
    """``{train,val}/{image,label,depth,normal}/I.npy``; their ``val`` is the official test split. Frames are
    called ``train/12``. Images are stored as floats in [0, 1]; reading rounds them to 8 bits, from which they
    were made."""

    looks_for = "train/image/ and train/label/ with .npy files"
    classes = (13,)
    normals_note = "estimated by Eigen and Fergus from depth, resized by the authors of MTAN; axes as stored"

    @classmethod
    def matches(cls, root: Path) -> bool:
        return (root / "train" / "image").is_dir() and (root / "train" / "label").is_dir()

    def find(self) -> Files:
        files: Files = {kind: {f"{part}/{stem}": path for part in _PARTS.values()
                               for stem, path in files_by_stem(self.root / part / folder, (".npy",)).items()}
                        for kind, folder in _KINDS.items()}
        return {**files, "boundaries": {}}

    def frames(self, official: str) -> list[str]:
        """0 .. n-1 for the n images that are there, as in the published loaders."""
        part = _PARTS[official]
        count = sum(frame.startswith(f"{part}/") for frame in self.files["image"])
        return [f"{part}/{i}" for i in range(count)]

    def expected(self, frame: str, kind: str) -> Path:
        part, stem = frame.split("/")
        return self.root / part / _KINDS[kind] / f"{stem}.npy"

    def size(self, frame: str) -> tuple[int, int]:
        path = self.path(frame, "image")
        with reading(path, "an array of numbers in .npy format"):
            height, width = np.load(path, mmap_mode="r", allow_pickle=False).shape[:2]
        return height, width

    def image(self, frame: str) -> UInt8[Tensor, "3 h w"]:
        return read_npy_color(self.path(frame, "image"))

    def semseg(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        path = self.path(frame, "semseg")
        return class_ids(read_npy(path), path, lowest=0, highest=12, void=-1)

    def depth(self, frame: str) -> np.ndarray:
        path = self.path(frame, "depth")
        return meters(read_npy(path), path)

    def normals(self, frame: str) -> Float[Tensor, "3 h w"]:
        path = self.path(frame, "normals")
        return vectors(read_npy(path), path)
