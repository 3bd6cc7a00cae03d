"""Reading one image or label from a file of any type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from polyptych.data._files import read_color, read_npy, reading
from polyptych.data._matlab import load_mat, variables_of
from polyptych.errors import InputError, nearest

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")
ARRAYS = (".npy", ".npz", ".mat", ".h5", ".hdf5")

_COPY = "copy the file again; it is damaged or of another format"


def read_image(path: Path, key: str) -> UInt8[Tensor, "3 h w"]:
    """RGB, from a picture or from an array uint8 (h w 3) or (h w). What EXIF says of the orientation is not applied,
    because labels are drawn on the stored pixels.

    Raises:
        InputError: the file cannot be read, or has more than eight bits.
    """
    if path.suffix.lower() in PICTURES:
        with reading(path, "a picture"), Image.open(path) as file:
            if file.mode.startswith(("I", "F")):
                raise InputError(path, f"a picture of mode {file.mode}", "eight bits per channel",
                                 "convert the images to 8-bit PNG or JPEG")
        return read_color(path)
    array = read_array(path, key)
    if array.ndim == 2:
        array = np.stack([array] * 3, -1)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        raise InputError(path, f"{array.dtype} of shape {array.shape}", "an image as uint8 (h, w, 3)", "convert it")
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)


def read_array(path: Path, key: str) -> np.ndarray:
    """The numbers in a file: pixels of a picture (of one with a palette its indices), or an array.

    Args:
        key: name of the variable in .npz, .mat and .h5 files; needless where they hold only one.

    Raises:
        InputError: the file is damaged, of an unknown type, holds no numbers, or has no variable of that name.
    """
    suffix = path.suffix.lower()
    if suffix in PICTURES:
        with reading(path, "a picture"), Image.open(path) as file:
            array = np.array(file)
    elif suffix == ".npy":
        array = read_npy(path)
    elif suffix == ".npz":
        with reading(path, "an archive of arrays (.npz)"), np.load(path, allow_pickle=False) as archive:
            array = archive[_variable(path, key, dict.fromkeys(archive.files))]
    elif suffix == ".mat":
        array = _read_mat(path, key)
    elif suffix in (".h5", ".hdf5"):
        array = _read_hdf5(path, key)
    else:
        raise InputError(path, f"a file of type '{suffix}'", f"one of {', '.join(PICTURES + ARRAYS)}",
                         "convert it, for instance to .npy or to 16-bit .png")
    if array.dtype.kind not in "biuf" or not array.size:
        raise InputError(path, f"{array.dtype} of shape {array.shape}", "an array of numbers", "check `key`")
    return array


def flat(array: np.ndarray, path: Path) -> np.ndarray:
    """(h w), from (h w), (h w 1), (1 h w), or a picture in color that is gray all over."""
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[..., 0] if array.shape[-1] == 1 else array[0]
    if array.ndim == 3 and array.shape[-1] in (3, 4) and (array[..., :3] == array[..., :1]).all():
        array = array[..., 0]
    if array.ndim != 2:
        raise InputError(path, f"an array of shape {array.shape}", "one value for each pixel, (h, w)",
                         "store ids or values as gray, or say encoding = \"colors\" if colors stand for classes")
    return array


def _read_mat(path: Path, key: str) -> np.ndarray:
    needs = "a MATLAB file"
    with reading(path, needs), path.open("rb") as file:
        modern = b"MATLAB 7.3" in file.read(128)
    if modern:
        # HDF5 has the axes of MATLAB in the opposite order.
        return _read_hdf5(path, key).T
    name = _variable(path, key, dict.fromkeys(variables_of(path, needs)))
    with reading(path, needs):
        return np.asarray(load_mat(path, needs, [name])[name])


def _read_hdf5(path: Path, key: str) -> np.ndarray:
    import h5py

    with reading(path, "an HDF5 file"), h5py.File(path, "r") as file:
        arrays = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
        if key in file:  # a path into groups
            arrays[key] = file[key]
        item = arrays[_variable(path, key, arrays)]
        if not isinstance(item, h5py.Dataset):
            raise InputError(path, f"a group at '{key}'", "an array", "correct `key`")
        return np.asarray(item[()])


def _variable(path: Path, key: str, there: Mapping[str, object]) -> str:
    if key in there:
        return key
    if not key and len(there) == 1:
        return next(iter(there))
    raise InputError(path, f"no variable '{key}'" if key else "several variables, or none",
                     f"the name of a variable: {nearest(key, there)}", f"set `key`, or {_COPY}")
