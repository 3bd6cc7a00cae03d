"""NYUD_MT in any packing: one folder for each kind of label."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from polyptych.data.arrays import class_ids, read_mat, read_npy
from polyptych.data.files import files_by_stem, read_lines
from polyptych.data.pictures import read_color, read_gray, read_levels
from polyptych.datasets._decoding import edges, meters, picture_vectors, vectors
from polyptych.datasets._layouts import Files
from polyptych.datasets._nyuv2.layouts._base import NYUv2Layout
from polyptych.datasets._nyuv2.scenes import TEST, TRAIN, folders, recorded_scene, write_list

_FOLDERS = {"image": "images", "semseg": "segmentation", "depth": "depth", "normals": "normals",
            "boundaries": "edge"}


class FolderLayout(NYUv2Layout):
    """``images/ID.jpg, segmentation/ID.png`` (0 unlabeled, 1..40) ``depth/ID.npy`` (m) ``normals/ID.npy``
    and so on, with the lists ``gt_sets/{train,val}.txt``; their ``val`` is the official test split.

    Three projects packed it differently. This layout reads any mixture of their formats; its subclasses accept only
    one.

    Attributes:
        suffixes: file name suffixes of each kind of file, the preferred one first.
        told_by: kinds of files that must exist with these suffixes for the layout to match.
    """

    looks_for = "images/ and gt_sets/"
    note = "NYUD_MT in any of its three packings"
    auto_order = 10
    normals_note = "as stored in normals/; the files do not say who estimated them"
    suffixes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "image": (".jpg", ".png"), "semseg": (".png", ".mat"), "depth": (".npy", ".mat"),
        "normals": (".npy", ".png", ".jpg"), "boundaries": (".npy", ".png")}
    told_by: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def matches(cls, root: Path) -> bool:
        return (root / "images").is_dir() and (root / "gt_sets").is_dir() and all(
            files_by_stem(root / _FOLDERS[kind], cls.suffixes[kind]) for kind in cls.told_by)

    def find(self) -> Files:
        return {kind: files_by_stem(self.root / folder, self.suffixes[kind])
                for kind, folder in _FOLDERS.items()}

    def frames(self, part: str) -> list[str]:
        return read_lines(self.root / "gt_sets" / {"train": "train.txt", "test": "val.txt"}[part])

    def expected(self, frame: str, kind: str) -> Path:
        # The suffix of the other frames is the best guess.
        suffix = next((path.suffix for path in self.files[kind].values()), self.suffixes[kind][0])
        return self.root / _FOLDERS[kind] / f"{frame}{suffix}"

    def semseg(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        path = self.path(frame, "semseg")
        array = read_mat(path, "segmentation") if _type(path) == ".mat" else read_gray(path)
        return class_ids(array, path, lowest=1, highest=40, void=0)

    def depth(self, frame: str) -> np.ndarray:
        path = self.path(frame, "depth")
        return meters(read_mat(path, "depth") if _type(path) == ".mat" else read_npy(path), path)

    def normals(self, frame: str) -> Float[Tensor, "3 h w"]:
        path = self.path(frame, "normals")
        return vectors(read_npy(path), path) if _type(path) == ".npy" else picture_vectors(read_color(path))

    def boundaries(self, frame: str) -> np.ndarray:
        path = self.path(frame, "boundaries")
        if _type(path) == ".npy":
            return edges(read_npy(path), path, 1)
        levels, top = read_levels(path)  # optimized PNG files store 0 and 255 in one bit or two
        return edges(levels, path, top or 255)

    @classmethod
    def write_fixture(cls, root: Path) -> None:
        folders(root, *_FOLDERS.values(), "gt_sets")
        write_list(root / "gt_sets/train.txt", TRAIN)
        write_list(root / "gt_sets/val.txt", TEST)
        for number in TRAIN + TEST:
            scene = recorded_scene(number)
            for kind, folder in _FOLDERS.items():
                _WRITERS[kind, cls.suffixes[kind][0]](root / folder / f"{number:04d}", scene)


def _type(path: Path) -> str:
    return path.suffix.lower()


def _write_mat(path: Path, name: str, array: np.ndarray) -> None:
    from scipy.io import savemat

    savemat(path.with_suffix(".mat"), {name: array})


_WRITERS = {
    ("image", ".jpg"): lambda path, scene: path.with_suffix(".jpg").write_bytes(scene.jpeg),
    ("image", ".png"): lambda path, scene: Image.fromarray(scene.image).save(path.with_suffix(".png")),
    ("semseg", ".png"): lambda path, scene: Image.fromarray(scene.ids).save(path.with_suffix(".png")),
    ("semseg", ".mat"): lambda path, scene: _write_mat(path, "segmentation", scene.ids),
    ("depth", ".npy"): lambda path, scene: np.save(path.with_suffix(".npy"), scene.depth),
    ("depth", ".mat"): lambda path, scene: _write_mat(path, "depth", scene.depth),
    ("normals", ".npy"): lambda path, scene: np.save(path.with_suffix(".npy"), scene.normals),
    ("normals", ".png"): lambda path, scene: scene.normals_picture().save(path.with_suffix(".png")),
    ("normals", ".jpg"): lambda path, scene: scene.normals_picture().save(path.with_suffix(".jpg"), quality=95,
                                                                         subsampling=0),
    ("boundaries", ".npy"): lambda path, scene: np.save(path.with_suffix(".npy"), scene.edge.astype(np.uint8)),
    ("boundaries", ".png"): lambda path, scene: Image.fromarray(scene.edge.astype(np.uint8) * 255).save(
        path.with_suffix(".png")),
}
