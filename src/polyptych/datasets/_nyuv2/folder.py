"""NYUD_MT: one folder per kind of label, as ASTMT, the survey and ATRC, or InvPT packed it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from polyptych.data._files import class_ids, files_by_stem, read_color, read_gray, read_lines, read_npy
from polyptych.data._matlab import read_mat
from polyptych.datasets._nyuv2.layout import Files, Layout, edges, meters, picture_vectors, vectors

_FOLDERS = {"image": "images", "semseg": "segmentation", "depth": "depth", "normals": "normals",
            "boundaries": "edge"}


class FolderLayout(Layout):
    """``images/ID.jpg, segmentation/ID.png`` (0 unlabeled, 1..40) ``depth/ID.npy`` (m) ``normals/ID.npy``
    and so on, with the lists ``gt_sets/{train,val}.txt``; their ``val`` is the official test split.

    Whatever the packing; the subclasses insist on one of the three.

    Attributes:
        suffixes: those of each kind of file, the preferred one first.
    """

    looks_for = "images/ and gt_sets/"
    normals_note = "as stored in normals/; the files do not say who estimated them"
    suffixes: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "image": (".jpg", ".png"), "semseg": (".png", ".mat"), "depth": (".npy", ".mat"),
        "normals": (".npy", ".png", ".jpg"), "boundaries": (".npy", ".png")}

    @classmethod
    def matches(cls, root: Path) -> bool:
        return (root / "images").is_dir() and (root / "gt_sets").is_dir()

    def find(self) -> Files:
        return {kind: files_by_stem(self.root / folder, self.suffixes[kind])
                for kind, folder in _FOLDERS.items()}

    def frames(self, official: str) -> list[str]:
        return read_lines(self.root / "gt_sets" / {"train": "train.txt", "test": "val.txt"}[official])

    def expected(self, frame: str, kind: str) -> Path:
        # What the other frames have is the better guess.
        suffix = next((path.suffix for path in self.files[kind].values()), self.suffixes[kind][0])
        return self.root / _FOLDERS[kind] / f"{frame}{suffix}"

    def image(self, frame: str) -> UInt8[Tensor, "3 h w"]:
        return read_color(self.path(frame, "image"))

    def semseg(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        path = self.path(frame, "semseg")
        array = read_mat(path, "segmentation") if path.suffix == ".mat" else read_gray(path)
        return class_ids(array, path, lowest=1, highest=40, void=0)

    def depth(self, frame: str) -> np.ndarray:
        path = self.path(frame, "depth")
        return meters(read_mat(path, "depth") if path.suffix == ".mat" else read_npy(path), path)

    def normals(self, frame: str) -> Float[Tensor, "3 h w"]:
        path = self.path(frame, "normals")
        return vectors(read_npy(path), path) if path.suffix == ".npy" else picture_vectors(read_color(path))

    def boundaries(self, frame: str) -> np.ndarray:
        path = self.path(frame, "boundaries")
        return edges(read_npy(path), path, 1) if path.suffix == ".npy" else edges(read_gray(path), path, 255)


class _Packing(FolderLayout):
    """One of the three, recognized by the files of its segmentation and normals."""

    @classmethod
    def matches(cls, root: Path) -> bool:
        return super().matches(root) and all(files_by_stem(root / _FOLDERS[kind], cls.suffixes[kind])
                                             for kind in ("semseg", "normals"))


class ASTMTLayout(_Packing):
    """``NYUD_MT.tgz`` of ASTMT."""

    looks_for = "images/, gt_sets/, segmentation/*.mat and normals/*.jpg"
    suffixes = {"image": (".jpg",), "semseg": (".mat",), "depth": (".mat",),  # noqa: RUF012
                "normals": (".jpg",), "boundaries": (".png",)}


class SurveyLayout(_Packing):
    """``NYUD_MT.tgz`` of the survey, which ATRC uses too."""

    looks_for = "images/, gt_sets/, segmentation/*.png and normals/*.npy"
    suffixes = {"image": (".jpg",), "semseg": (".png",), "depth": (".npy",),  # noqa: RUF012
                "normals": (".npy",), "boundaries": (".npy",)}


class InvPTLayout(_Packing):
    """``NYUDv2.tar.gz`` of InvPT, DeMT and TaskPrompter."""

    looks_for = "images/, gt_sets/, segmentation/*.png and normals/*.png"
    suffixes = {"image": (".png",), "semseg": (".png",), "depth": (".npy",),  # noqa: RUF012
                "normals": (".png",), "boundaries": (".png",)}
