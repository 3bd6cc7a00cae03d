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

from polyptych.data._files import flat, picture_size, require_files
from polyptych.errors import InputError

Files = dict[str, dict[str, Path]]


class Layout(ABC):
    """One way in which NYUv2 lies on disk.

    Attributes:
        looks_for: what identifies the layout, for messages.
        classes: numbers of classes that its segmentation can be read with, the finest first; 41 where unlabeled
            pixels are told apart from all others.
        normals_note: where its normals come from, as far as known.
        files: for ``image`` and every kind of label, the path of each frame that is there. ``raw_depth`` is a
            kind of its own, because one layout holds both.
    """

    looks_for: ClassVar[str]
    classes: ClassVar[tuple[int, ...]] = (41, 40, 13)
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
        return bool(self.files.get(kind))

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

    def raw_depth(self, frame: str) -> np.ndarray:
        """As :meth:`depth`, but with the holes that the sensor left, where the layout has it."""
        raise NotImplementedError


def meters(array: np.ndarray, path: Path | str) -> np.ndarray:
    """Depth (h w); whole numbers are refused, because they would be millimeters or a code."""
    array = flat(array, path)
    if array.dtype.kind != "f":
        raise InputError(path, f"depth as {array.dtype}", "meters as floating point",
                         "divide by the scale that the file was written with")
    return array


def edges(array: np.ndarray, path: Path | str, top: int) -> np.ndarray:
    """Bool (h w), from a map that is 0 without and ``top`` with an edge; values between are cut in the middle."""
    array = flat(array, path)
    if array.dtype.kind != "b":
        highest, lowest = (array.max(), array.min()) if array.size else (0, 0)
        if not (lowest >= 0 and (highest == 0 or top / 2 < highest <= top)):  # NaN included
            raise InputError(path, f"values from {lowest:g} to {highest:g}", f"0 without and {top} with an edge",
                             "check that the file holds boundaries and is scaled that way")
        array = array > top / 2
    return array


def vectors(array: np.ndarray, path: Path | str) -> Float[Tensor, "3 h w"]:
    """From (h w 3) with components in [-1, 1]; NaN counts as unknown."""
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype.kind != "f" or not array.size:
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
