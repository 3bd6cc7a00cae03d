"""NYUD_MT: one folder per kind of label, as ASTMT, the survey and ATRC, or InvPT packed it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from polyptych.data._files import files_by_stem, read_color, read_gray, read_lines, read_mat, read_npy
from polyptych.datasets._nyuv2.layout import Files, Layout, class_ids, flat, picture_vectors, vectors

# folder and suffixes of each kind, the preferred suffix first
_KINDS = {
    "image": ("images", (".jpg", ".png")),
    "semseg": ("segmentation", (".png", ".mat")),
    "depth": ("depth", (".npy", ".mat")),
    "normals": ("normals", (".npy", ".png", ".jpg")),
    "boundaries": ("edge", (".npy", ".png")),
}


class FolderLayout(Layout):
    """``images/ID.jpg, segmentation/ID.png`` (0 unlabeled, 1..40) ``depth/ID.npy`` (m) ``normals/ID.npy``
    and so on, with the lists ``gt_sets/{train,val}.txt``; their ``val`` is the official test split."""

    looks_for = "images/ and gt_sets/"
    normals_note = "as stored in normals/; the files do not say who estimated them"

    @classmethod
    def matches(cls, root: Path) -> bool:
        return (root / "images").is_dir() and (root / "gt_sets").is_dir()

    def find(self) -> Files:
        return {kind: files_by_stem(self.root / folder, suffixes)
                for kind, (folder, suffixes) in _KINDS.items()}

    def frames(self, official: str) -> list[str]:
        return read_lines(self.root / "gt_sets" / {"train": "train.txt", "test": "val.txt"}[official])

    def expected(self, frame: str, kind: str) -> Path:
        folder, suffixes = _KINDS[kind]
        # What the other frames have is the better guess.
        suffix = next((path.suffix for path in self.files[kind].values()), suffixes[0])
        return self.root / folder / f"{frame}{suffix}"

    def image(self, frame: str) -> UInt8[Tensor, "3 h w"]:
        return read_color(self.path(frame, "image"))

    def semseg(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        path = self.path(frame, "semseg")
        array = read_mat(path, "segmentation") if path.suffix == ".mat" else read_gray(path)
        return class_ids(array, path, lowest=1, highest=40, void=0)

    def depth(self, frame: str) -> np.ndarray:
        path = self.path(frame, "depth")
        return flat(read_mat(path, "depth") if path.suffix == ".mat" else read_npy(path), path)

    def normals(self, frame: str) -> Float[Tensor, "3 h w"]:
        path = self.path(frame, "normals")
        return vectors(read_npy(path), path) if path.suffix == ".npy" else picture_vectors(read_color(path))

    def boundaries(self, frame: str) -> np.ndarray:
        path = self.path(frame, "boundaries")
        return flat(read_npy(path), path) > 0.5 if path.suffix == ".npy" else read_gray(path) > 127
