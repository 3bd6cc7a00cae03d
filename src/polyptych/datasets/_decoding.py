"""Decoding of stored values into labels, shared by several datasets; errors about impossible values name the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from polyptych.data.arrays import flat, require_unit_vectors
from polyptych.errors import InputError


def meters(array: np.ndarray, path: Path | str) -> np.ndarray:
    """Depth (h w) in meters; integers are refused, because they would be millimeters or a code."""
    array = flat(array, path)
    if array.dtype.kind != "f":
        raise InputError(path, f"depth as {array.dtype}", "meters as floating point",
                         "divide by the scale that the file was written with")
    return array


def edges(array: np.ndarray, path: Path | str, top: int) -> np.ndarray:
    """Bool (h w), from a map that is 0 without an edge and ``top`` with one (the largest value that the bits of the
    file can hold); values in between are thresholded at the middle."""
    array = flat(array, path)
    if array.dtype.kind != "b":
        highest, lowest = (array.max(), array.min()) if array.size else (0, 0)
        if not (lowest >= 0 and (highest == 0 or top / 2 < highest <= top)):  # NaN included
            raise InputError(path, f"values from {lowest:g} to {highest:g}", f"0 without an edge and {top} with one",
                             "check that the file holds boundaries and is scaled that way")
        array = array > top / 2
    return array


def vectors(array: np.ndarray, path: Path | str) -> Float[Tensor, "3 h w"]:
    """Vectors from an array (h w 3) with components in [-1, 1]; NaN counts as unknown."""
    if array.ndim != 3 or array.shape[-1] != 3 or array.dtype.kind != "f" or not array.size:
        raise InputError(path, f"{array.dtype} of shape {array.shape}", "floating point of shape (h, w, 3)",
                         "check that the file holds surface normals")
    planes = np.ascontiguousarray(array.transpose(2, 0, 1), np.float32)
    if not max(planes.max(), -planes.min()) <= 1.01:
        planes = np.where(np.isnan(planes).any(0), np.float32(0), planes)
        if (largest := np.abs(planes).max()) > 1.01:
            raise InputError(path, f"components up to {largest:g}", "components from -1 to 1",
                             "store unit vectors")
    require_unit_vectors(planes, np.linalg.norm(planes, axis=0) > 0.1, path)
    return torch.from_numpy(planes)


def picture_vectors(picture: UInt8[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
    """Decode a picture into vectors: 2 v / 255 - 1."""
    return picture.contiguous().float().mul_(2 / 255).sub_(1)


def unit_vectors(normals: Float[Tensor, "3 h w"]) -> tuple[Float[Tensor, "3 h w"], Bool[Tensor, "h w"]]:
    """Normals of unit length, and the mask where they are known: where the length is above 0.1, because a zero vector
    in 8 bits is not exactly zero."""
    length = normals.square().sum(0).sqrt_()  # torch's vector_norm takes fifty times as long here
    known = length > 0.1
    return normals * (known / length.clamp(min=0.1)), known
