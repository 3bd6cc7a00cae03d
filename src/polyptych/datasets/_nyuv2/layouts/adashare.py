"""AdaShare's and AutoMTL's archive with a JSON index: pictures and arrays of 480x640."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from polyptych.data.arrays import class_ids, read_npy
from polyptych.data.files import composed, file_names, id_of, read_json
from polyptych.data.pictures import read_color, read_gray
from polyptych.datasets._decoding import meters, picture_vectors
from polyptych.datasets._layouts import Files
from polyptych.datasets._nyuv2.layouts._base import NYUv2Layout
from polyptych.datasets._nyuv2.scenes import TEST, TRAIN, folders, recorded_scene
from polyptych.errors import InputError

_INDEX = "nyu_v2_3task.json"
_KINDS = ("image", "semseg", "normals", "depth")  # the order of the paths of one frame
_EXAMPLES = {"image": "img/{}.png", "semseg": "seg/{}.png", "normals": "normal_mask/{}.png", "depth": "depth/{}.npy"}


class AdaShareLayout(NYUv2Layout):
    """``nyu_v2_3task.json`` lists, for ``train`` and ``test``, ``[img/ID.png, seg/ID.png`` (0..39, 255
    unlabeled) ``normal_mask/ID.png`` (v = 127.5 (n + 1), white unknown) ``depth/ID.npy]`` (m). Its halves of the
    training set, ``train1`` and ``train2``, are not read.

    Normals are decoded to unit vectors. The authors' loaders normalize the raw bytes instead, so all of their targets
    point into one octant, and their angular errors cannot be compared with any others, including ours.
    """

    looks_for = f"{_INDEX} with img/, seg/, normal_mask/ and depth/"
    counts: ClassVar[Mapping[str, int]] = {}
    note = ("published numbers on it use other metrics, and angles between undecoded normals: not comparable "
            "with other layouts")
    auto_order = 50
    classes = (40, 13)
    normals_note = "as stored in normal_mask/; red, green and blue are read as x, y and z, which is unverified"

    @classmethod
    def matches(cls, root: Path) -> bool:
        return (root / _INDEX).is_file()

    def find(self) -> Files:
        self._lists: dict[str, list[str]] = {}
        files: Files = {kind: {} for kind in _KINDS}
        there: dict[Path, dict[str, Path]] = {}  # by folder, the files by the composed form (NFC) of their names
        for part, entries in self._index().items():
            self._lists[part] = []
            for entry in entries:
                frame = composed(Path(entry[0]).stem)
                self._lists[part].append(frame)
                for kind, relative in zip(_KINDS, entry, strict=True):
                    folder = (self.root / relative).parent
                    if folder not in there:
                        there[folder] = {id_of(name, folder / name): folder / name for name in file_names(folder)}
                    if path := there[folder].get(composed(Path(relative).name)):
                        files[kind][frame] = path
        return files

    def _index(self) -> dict[str, list[tuple[str, str, str, str]]]:
        path = self.root / _INDEX
        lists: dict[str, list[tuple[str, str, str, str]]] = read_json(
            path, "JSON: lists 'train' and 'test' of [image, segmentation, normals, depth]",
            dict[str, list[tuple[str, str, str, str]]])
        for part in ("train", "test"):
            if part not in lists:
                raise InputError(path, f"an index without '{part}'", "the lists 'train' and 'test'",
                                 "download the archive again")
        for relative in (name for part in ("train", "test") for entry in lists[part] for name in entry):
            if Path(relative).is_absolute() or ".." in Path(relative).parts:
                raise InputError(path, f"the path '{relative}'", "paths inside the folder of the dataset",
                                 "download the archive again")
        return {part: lists[part] for part in ("train", "test")}

    def has(self, task: str) -> bool:
        return task in self.kinds  # the index lists all files, so that missing ones are named

    def frames(self, part: str) -> list[str]:
        return self._lists[part]

    def expected(self, frame: str, kind: str) -> Path:
        return self.root / _EXAMPLES[kind].format(frame)

    def semseg(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        path = self.path(frame, "semseg")
        return class_ids(read_gray(path), path, lowest=0, highest=39, void=255)

    def depth(self, frame: str) -> np.ndarray:
        path = self.path(frame, "depth")
        return meters(read_npy(path), path)

    def normals(self, frame: str) -> Float[Tensor, "3 h w"]:
        picture = read_color(self.path(frame, "normals"))
        return picture_vectors(picture) * (picture != 255).any(0)

    @classmethod
    def write_fixture(cls, root: Path) -> None:
        folders(root, "img", "seg", "normal_mask", "depth")
        paths = {number: [_EXAMPLES[kind].format(f"{number:04d}") for kind in _KINDS] for number in TRAIN + TEST}
        parts = {"train": TRAIN, "train1": TRAIN[::2], "train2": TRAIN[1::2], "test": TEST}
        index = {part: [paths[number] for number in numbers] for part, numbers in parts.items()}
        (root / _INDEX).write_text(json.dumps(index), "utf-8")
        for number, (image, semseg, normals, depth) in paths.items():
            scene = recorded_scene(number)
            known = scene.normals.any(-1, keepdims=True)
            Image.fromarray(scene.image).save(root / image)
            Image.fromarray(np.where(scene.ids > 0, scene.ids - 1, 255).astype(np.uint8)).save(root / semseg)
            Image.fromarray(np.where(known, np.asarray(scene.normals_picture()), np.uint8(255))).save(root / normals)
            np.save(root / depth, scene.depth)
