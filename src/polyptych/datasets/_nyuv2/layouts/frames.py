"""Compressed frames: JPEG, 8-bit depth, 40 classes and small derived normals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from polyptych.data.arrays import class_ids
from polyptych.data.files import files_by_stem, read_lines
from polyptych.data.pictures import read_color, read_gray, read_levels
from polyptych.datasets._decoding import picture_vectors
from polyptych.datasets._layouts import Files
from polyptych.datasets._nyuv2.layouts._base import NYUv2Layout
from polyptych.datasets._nyuv2.scenes import TEST, TRAIN, folders, recorded_scene, write_list
from polyptych.errors import InputError

_KINDS = {"image": ("images", ".jpg"), "semseg": ("seg40", ".png"), "depth": ("depth", ".webp"),
          "normals": ("normals", ".jpg")}


class FramesLayout(NYUv2Layout):
    """``images/ID.jpg, seg40/ID.png`` (0..39, 255 unlabeled) ``depth/ID.webp`` (code c means (c + 0.5) /
    25.5 m) ``normals/ID.jpg`` (v / 127.5 - 1, a third of the size) with the lists ``{train,test}.txt``."""

    looks_for = "images/, seg40/ and train.txt"
    note = "8-bit depth and normals derived from it: not for published tables"
    auto_order = 30
    classes = (40, 13)  # not 41, because otherprop would be background in train only
    semseg_note = "in train, otherprop cannot be told from unlabeled and is not labeled"
    normals_note = "derived from 8-bit depth, about 8 degrees off; not the normals of published tables"

    @classmethod
    def matches(cls, root: Path) -> bool:
        return (root / "images").is_dir() and (root / "seg40").is_dir() and (root / "train.txt").is_file()

    def find(self) -> Files:
        return {kind: files_by_stem(self.root / folder, (suffix,)) for kind, (folder, suffix) in _KINDS.items()}

    def frames(self, part: str) -> list[str]:
        return read_lines(self.root / f"{part}.txt")

    def expected(self, frame: str, kind: str) -> Path:
        folder, suffix = _KINDS[kind]
        return self.root / folder / f"{frame}{suffix}"

    def semseg(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        path = self.path(frame, "semseg")
        return class_ids(read_gray(path), path, lowest=0, highest=39, void=255)

    def depth(self, frame: str) -> np.ndarray:
        path = self.path(frame, "depth")
        levels, top = read_levels(path)
        if not 0 < top <= 255:
            raise InputError(path, f"{levels.dtype} values", "an 8-bit code", "check that the file holds a depth code")
        return _METERS[levels * np.uint8(255 // top)]  # a picture with fewer bits holds the same levels, but coarser

    def normals(self, frame: str) -> Float[Tensor, "3 h w"]:
        return picture_vectors(read_color(self.path(frame, "normals"), size=self.size(frame)))

    @classmethod
    def write_fixture(cls, root: Path) -> None:
        folders(root, *(folder for folder, _ in _KINDS.values()))
        write_list(root / "train.txt", TRAIN)
        write_list(root / "test.txt", TEST)
        for number in TRAIN + TEST:
            name, scene = f"{number:04d}", recorded_scene(number)
            ids = np.where(scene.ids > 0, scene.ids - 1, 255).astype(np.uint8)
            code = (scene.depth * 25.5).clip(0, 255).astype(np.uint8)
            (root / f"images/{name}.jpg").write_bytes(scene.jpeg)
            Image.fromarray(ids).save(root / f"seg40/{name}.png")
            Image.fromarray(code).save(root / f"depth/{name}.webp", lossless=True)
            scene.normals_picture().reduce(3).save(root / f"normals/{name}.jpg", quality=95)


_METERS = ((np.arange(256) + 0.5) / 25.5).astype(np.float32)
