"""MTAN's arrays of 288x384 with 13 classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from polyptych.data.arrays import class_ids, read_npy
from polyptych.datasets._decoding import meters, vectors
from polyptych.datasets._mtan import MTANArrays
from polyptych.datasets._nyuv2.classes import FORTY_TO_THIRTEEN
from polyptych.datasets._nyuv2.layouts._base import NYUv2Layout
from polyptych.datasets._nyuv2.scenes import TEST, TRAIN, folders, recorded_scene


class MTANLayout(MTANArrays, NYUv2Layout):
    """``{train,val}/{image,label,depth,normal}/I.npy``; their ``val`` is the official test split."""

    looks_for = "train/image/ and train/label/ with .npy files"
    note = ("13 classes at 288x384; files are numbered from 0; its val is the official test split; the script that "
            "cropped and resized it is lost, so it cannot be reproduced")
    auto_order = 20
    classes = (13,)
    normals_note = "estimated by Eigen and Fergus from depth, resized by the authors of MTAN; axes as stored"
    folders = {"image": "image", "semseg": "label", "depth": "depth", "normals": "normal"}  # noqa: RUF012

    @classmethod
    def matches(cls, root: Path) -> bool:
        return (root / "train" / "image").is_dir() and (root / "train" / "label").is_dir()

    def semseg(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        path = self.path(frame, "semseg")
        return class_ids(read_npy(path), path, lowest=0, highest=12, void=-1)

    def depth(self, frame: str) -> np.ndarray:
        path = self.path(frame, "depth")
        return meters(read_npy(path), path)

    def normals(self, frame: str) -> Float[Tensor, "3 h w"]:
        path = self.path(frame, "normals")
        return vectors(read_npy(path), path)

    @classmethod
    def write_fixture(cls, root: Path) -> None:
        for part, numbers in (("train", TRAIN), ("val", TEST)):
            folders(root / part, *cls.folders.values())
            for i, number in enumerate(numbers):
                scene = recorded_scene(number)
                thirteen = FORTY_TO_THIRTEEN[np.maximum(scene.ids, 1) - 1].astype(np.float32)
                np.save(root / part / f"image/{i}.npy", scene.image.astype(np.float32) / 255)
                np.save(root / part / f"label/{i}.npy", np.where(scene.ids > 0, thirteen, np.float32(-1)))
                np.save(root / part / f"depth/{i}.npy", scene.raw[..., None])
                np.save(root / part / f"normal/{i}.npy", scene.normals)
