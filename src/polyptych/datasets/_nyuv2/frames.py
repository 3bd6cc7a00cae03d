"""The 1449 labeled frames in compressed form: JPEG, 8-bit depth, 40 classes, small derived normals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from polyptych.data._files import class_ids, files_by_stem, read_color, read_gray, read_lines
from polyptych.datasets._nyuv2.layout import Files, Layout, picture_vectors
from polyptych.errors import InputError

_KINDS = {"image": ("images", ".jpg"), "semseg": ("seg40", ".png"), "depth": ("depth", ".webp"),
          "normals": ("normals", ".jpg")}


class FramesLayout(Layout):
    """``images/ID.jpg, seg40/ID.png`` (0..39, 255 unlabeled) ``depth/ID.webp`` (code c means (c + 0.5) /
    25.5 m) ``normals/ID.jpg`` (v / 127.5 - 1, a third of the size) with the lists ``{train,test}.txt``."""

    looks_for = "images/, seg40/ and train.txt"
    classes = (40, 13)  # not 41, because otherprop would be background in train only
    semseg_note = "in train, otherprop cannot be told from unlabeled and is not labeled"
    normals_note = "derived from 8-bit depth, about 8 degrees off; not the normals of published tables"

    @classmethod
    def matches(cls, root: Path) -> bool:
        return (root / "images").is_dir() and (root / "seg40").is_dir() and (root / "train.txt").is_file()

    def find(self) -> Files:
        files = {kind: files_by_stem(self.root / folder, (suffix,))
                 for kind, (folder, suffix) in _KINDS.items()}
        return {**files, "boundaries": {}}

    def frames(self, official: str) -> list[str]:
        return read_lines(self.root / f"{official}.txt")

    def expected(self, frame: str, kind: str) -> Path:
        folder, suffix = _KINDS[kind]
        return self.root / folder / f"{frame}{suffix}"

    def image(self, frame: str) -> UInt8[Tensor, "3 h w"]:
        return read_color(self.path(frame, "image"))

    def semseg(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        path = self.path(frame, "semseg")
        return class_ids(read_gray(path), path, lowest=0, highest=39, void=255)

    def depth(self, frame: str) -> np.ndarray:
        path = self.path(frame, "depth")
        code = read_gray(path)
        if code.dtype != np.uint8:
            raise InputError(path, f"{code.dtype} values", "an 8-bit code",
                             "check that the file holds a depth code")
        return _METERS[code]

    def normals(self, frame: str) -> Float[Tensor, "3 h w"]:
        return picture_vectors(read_color(self.path(frame, "normals"), size=self.size(frame)))


_METERS = ((np.arange(256) + 0.5) / 25.5).astype(np.float32)
