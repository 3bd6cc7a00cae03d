"""What all layouts of NYUv2 on disk have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from polyptych.data._files import picture_size, require_files
from polyptych.errors import InputError

Files = dict[str, dict[str, Path]]


class Layout(ABC):
    """One way in which NYUv2 lies on disk.

    Attributes:
        looks_for: what identifies the layout, for messages.
        classes: number of classes that its segmentation distinguishes.
        normals_note: where its normals come from, as far as known.
        files: for ``image`` and every kind of label, the path of each frame that is there.
    """

    looks_for: ClassVar[str]
    classes: ClassVar[int] = 40
    semseg_note: ClassVar[str] = ""
    normals_note: ClassVar[str]

    def __init__(self, root: Path):
        self.root = root
        self.files: Files = self.find()

    @classmethod
    @abstractmethod
    def matches(cls, root: Path) -> bool:
        """Whether ``root`` looks like this layout."""

    @abstractmethod
    def find(self) -> Files:
        """List the folders."""

    @abstractmethod
    def frames(self, official: str) -> list[str]:
        """Names of the frames of the official split ``train`` or ``test``."""

    @abstractmethod
    def expected(self, frame: str, kind: str) -> Path:
        """Where a file would be."""

    def has(self, kind: str) -> bool:
        return bool(self.files[kind])

    def path(self, frame: str, kind: str) -> Path:
        return self.files[kind][frame]

    def require(self, frames: list[str], kinds: Iterable[str]) -> None:
        """Refuse a half-copied dataset; see :func:`polyptych.data._files.require_files`."""
        for kind in kinds:
            require_files(self.expected(frames[0], kind).parent, frames, self.files[kind],
                          partial(self.expected, kind=kind))

    def size(self, frame: str) -> tuple[int, int]:
        """(h, w) of a frame, from the header of its image."""
        return picture_size(self.path(frame, "image"))

    @abstractmethod
    def image(self, frame: str) -> UInt8[Tensor, "3 h w"]: ...

    @abstractmethod
    def semseg(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        """Class ids uint8 (h w), counted from 0, and where there is a label."""

    @abstractmethod
    def depth(self, frame: str) -> np.ndarray:
        """Meters (h w); zero, negative or NaN where unknown."""

    @abstractmethod
    def normals(self, frame: str) -> Float[Tensor, "3 h w"]:
        """Vectors of any length; zero where unknown."""

    def boundaries(self, frame: str) -> np.ndarray:
        """The stored boundary map, bool (h w), where the layout has one."""
        raise NotImplementedError


def class_ids(array: np.ndarray, path: Path, lowest: int, highest: int,
              void: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids counted from 0 (uint8) and the mask of labeled pixels, from ids ``lowest..highest`` and
    ``void``."""
    array = flat(array, path)
    labeled = array != void
    seen = array[labeled]
    if seen.size and not (lowest <= seen.min() <= seen.max() <= highest and (seen == np.floor(seen)).all()):
        wrong = seen[(seen < lowest) | (seen > highest) | (seen != np.floor(seen))][0]
        raise InputError(path, f"class id {wrong:g}",
                         f"whole numbers from {lowest} to {highest}, or {void} where there is no label",
                         "check that the segmentation has these classes")
    return np.where(labeled, array - lowest, 0).astype(np.uint8), labeled


def flat(array: np.ndarray, path: Path) -> np.ndarray:
    """(h w), from (h w) or (h w 1)."""
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 or (not np.issubdtype(array.dtype, np.number) and array.dtype != bool):
        raise InputError(path, f"{array.dtype} of shape {array.shape}", "numbers of shape (h, w)",
                         "check that the file belongs to this dataset")
    return array


def vectors(array: np.ndarray, path: Path) -> Float[Tensor, "3 h w"]:
    """From (h w 3) with components in [-1, 1]; NaN counts as unknown."""
    if array.ndim != 3 or array.shape[-1] != 3 or not np.issubdtype(array.dtype, np.floating):
        raise InputError(path, f"{array.dtype} of shape {array.shape}", "floating point of shape (h, w, 3)",
                         "check that the file holds surface normals")
    planes = np.ascontiguousarray(array.transpose(2, 0, 1), np.float32)
    if not max(planes.max(), -planes.min()) <= 1.01:
        planes = np.where(np.isnan(planes).any(0), np.float32(0), planes)
        if (largest := np.abs(planes).max()) > 1.01:
            raise InputError(path, f"components up to {largest:g}", "components from -1 to 1",
                             "store unit vectors")
    return torch.from_numpy(planes)


def picture_vectors(picture: UInt8[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """The vectors 2 v / 255 - 1 of a picture."""
    return picture.contiguous().float().mul_(2 / 255).sub_(1)
