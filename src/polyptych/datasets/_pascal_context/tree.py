"""PASCAL-Context as packed in PASCAL_MT by the authors of ASTMT.

Source: Maninis, Radosavovic and Kokkinos, CVPR 2019, arXiv 1904.08918
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Integer, UInt8
from scipy import ndimage
from torch import Tensor

from polyptych.data.arrays import class_ids, read_mat
from polyptych.data.files import files_by_stem, read_lines, require_files
from polyptych.data.pictures import read_color, read_gray
from polyptych.datasets._pascal_context.classes import LAST_CONTEXT_ID
from polyptych.datasets._pascal_context.parts import read_parts
from polyptych.errors import InputError

# folders of each kind, the preferred one first, and the suffix
_KINDS = {
    "image": (("JPEGImages",), ".jpg"),
    "semseg": (("semseg/VOC12", "semseg/pascal-context"), ".png"),
    "context": (("pascal-context/trainval",), ".mat"),
    "parts": (("human_parts",), ".mat"),
    "normals": (("normals_distill",), ".png"),
    "saliency": (("sal_distill",), ".png"),
}

NEEDS = {"semseg": ("semseg",), "parts": ("parts",), "saliency": ("saliency",), "normals": ("normals", "context"),
         "boundaries": ("context",)}
"""Kinds of files that each task needs; the first one holds its labels."""


class Tree:
    """The folders of PASCAL_MT. ``files`` holds, for every kind of file, the path of each frame that exists."""

    looks_for = "JPEGImages/ and ImageSets/Context/"

    def __init__(self, root: Path):
        self.root = root
        self.files: dict[str, dict[str, Path]] = {}
        for kind, (folders, suffix) in _KINDS.items():
            self.files[kind] = {}
            for folder in reversed(folders):
                self.files[kind] |= files_by_stem(root / folder, (suffix,))

    @staticmethod
    def matches(root: Path) -> bool:
        return (root / "JPEGImages").is_dir() and (root / "ImageSets/Context").is_dir()

    def frames(self, official: str) -> list[str]:
        """Names of the frames of the official split ``train`` or ``val``."""
        return read_lines(self.root / "ImageSets/Context" / f"{official}.txt")

    def has(self, task: str) -> bool:
        return all(self.files[kind] for kind in NEEDS[task])

    def path(self, frame: str, kind: str) -> Path:
        return self.files[kind][frame]

    def expected(self, frame: str, kind: str) -> Path:
        """The path where a file should be."""
        folders, suffix = _KINDS[kind]
        return self.root / folders[0] / f"{frame}{suffix}"

    def require(self, frames: list[str], tasks: Iterable[str]) -> None:
        """Refuse an incomplete dataset. Only some part annotations may be missing, not all of them."""
        for kind in dict.fromkeys(["image", *(kind for task in tasks for kind in NEEDS[task])]):
            if kind != "parts" or not any(frame in self.files["parts"] for frame in frames):
                require_files(self.expected(frames[0], kind).parent, frames, self.files[kind],
                              partial(self.expected, kind=kind))

    def image(self, frame: str) -> UInt8[Tensor, "3 h w"]:
        return read_color(self.path(frame, "image"))

    def semseg(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the 21 classes (h w) and the mask of labeled pixels."""
        path = self.path(frame, "semseg")
        return class_ids(read_gray(path), path, lowest=0, highest=20, void=255)

    def context(self, frame: str) -> Integer[np.ndarray, "h w"]:
        """Ids of the 459 context classes, 0 for none."""
        path = self.path(frame, "context")
        return class_ids(read_mat(path, "LabelMap"), path, lowest=0, highest=LAST_CONTEXT_ID, void=-1)[0]

    def parts(self, frame: str) -> Integer[np.ndarray, "h w"] | None:
        """Ids of the parts; None if the image shows none."""
        return read_parts(self.path(frame, "parts"))

    def normals(self, frame: str) -> UInt8[Tensor, "3 h w"]:
        """The picture that encodes the normals: n = 2 v / 255 - 1."""
        return read_color(self.path(frame, "normals"))

    def saliency(self, frame: str) -> Bool[np.ndarray, "h w"]:
        path = self.path(frame, "saliency")
        gray = read_gray(path)
        if gray.dtype != np.uint8:
            raise InputError(path, f"{gray.dtype} values", "8 bits per pixel", "check that the file holds saliency")
        return gray > 127


def boundaries(context: Integer[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Where the Laplacian of the ids is not zero, thinned: the labels that boundaries are trained on."""
    from polyptych.metrics._boundary_benchmark.thinning import thin  # loads a compiler, which other tasks do not need

    # "mirror" does not repeat the border pixel, like the OpenCV default that produced the published labels.
    return thin(ndimage.laplace(context.astype(np.float64), mode="mirror") != 0)


def fit(array: np.ndarray, size: tuple[int, int], path: Path) -> np.ndarray:
    """A label (h w) at the image's ``size`` (h, w). Some labels of the collection are stored at another scale and are
    resized (nearest neighbor). A different aspect ratio means that the label belongs to another image.

    Raises:
        InputError: the aspect ratios differ.
    """
    (h, w), (height, width) = array.shape[:2], size
    check_shape((h, w), size, path)
    if (h, w) == size:
        return array
    rows = ((np.arange(height) + 0.5) * h / height).astype(int)
    columns = ((np.arange(width) + 0.5) * w / width).astype(int)
    return array[rows[:, None], columns]


def check_shape(got: tuple[int, int], size: tuple[int, int], path: Path) -> None:
    """Refuse a label whose shape is not a scaled version of the image, up to rounding of one side."""
    (h, w), (height, width) = got, size
    if got != size and min(abs(h - height * w / width), abs(w - width * h / height)) >= 1:
        raise InputError(path, f"a label of {h}x{w} pixels", f"the size of the image, {height}x{width}, or its shape "
                         "at another scale", "copy the file again")
