"""Arrays in .npy, .npz, .mat, .h5, .exr and .pfm files, and what labels stored as numbers have in common.

An array is refused by the size that its file declares, before any memory is taken for it
(:func:`polyptych.data.files.require_room`), and arrives in the byte order of this machine.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from polyptych.data._float_pictures import read_exr, read_pfm
from polyptych.data._matlab import load_mat, read_mat, variables_of
from polyptych.data.files import open_file, reading, require_plain, require_room
from polyptych.data.pictures import PICTURES, read_stored
from polyptych.errors import InputError, nearest

if TYPE_CHECKING:
    import h5py
    from torch import Tensor

__all__ = ["ARRAYS", "class_ids", "flat", "hdf5_array", "is_any", "load_mat", "native", "npy_shape", "open_hdf5",
           "read_array", "read_mat", "read_npy", "read_npy_color", "require_unit_vectors", "write_npy"]

ARRAYS = (".npy", ".npz", ".mat", ".h5", ".hdf5", ".exr", ".pfm")
"""Suffixes of the files of arrays that are read."""

_COPY = "copy the file again; it is damaged or of another format"
_NPY, _NPZ, _HDF5 = "an array of numbers in .npy format", "an archive of arrays (.npz)", "an HDF5 file"
_FOREIGN = "an array that is stored in the file itself"


def read_array(path: Path, key: str = "") -> np.ndarray:
    """The numbers in a file: pixels of a picture as stored (of one with a palette its indices), or an array.

    Args:
        key: name of the variable in .npz, .mat and .h5 files, or of the channel in .exr; needless where they hold only
            one.

    Raises:
        InputError: the file is damaged, of an unknown type, holds no numbers, or has no variable of that name.
    """
    suffix = path.suffix.lower()
    if suffix in PICTURES:
        array = read_stored(path)
    elif suffix == ".npy":
        array = read_npy(path)
    elif suffix == ".npz":
        array = _read_npz(path, key)
    elif suffix == ".mat":
        array = _read_mat(path, key)
    elif suffix in (".h5", ".hdf5"):
        array = _read_hdf5(path, key)
    elif suffix == ".exr":
        array = read_exr(path, key)
    elif suffix == ".pfm":
        array = read_pfm(path)
    else:
        raise InputError(path, f"a file of type '{suffix}'", f"one of {', '.join(PICTURES + ARRAYS)}",
                         "convert it, for instance to .npy or to 16-bit .png")
    if array.dtype.kind not in "biuf" or not array.size:
        raise InputError(path, f"{array.dtype} of shape {array.shape}", "an array of numbers", "check `key`")
    return array


def variables(path: Path) -> list[str]:
    """The names of the arrays in an .npz, .mat or .h5 file; none for a file that holds one array without a name."""
    suffix = path.suffix.lower()
    if suffix == ".npz":
        with open_file(path, "a NumPy archive") as file, zipfile.ZipFile(file) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    if suffix == ".mat" and not _is_modern(path):
        return variables_of(path, "a MATLAB file")
    if suffix in (".mat", ".h5", ".hdf5"):
        with open_hdf5(path) as file:
            return [name for name in file if hdf5_array(file, name, path) is not None]
    return []


def native(array: np.ndarray) -> np.ndarray:
    """The array in the byte order of this machine, the only one that torch knows."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _variable(path: Path, key: str, there: Collection[str]) -> str:
    if key in there:
        return key
    if not key and len(there) == 1:
        return next(iter(there))
    raise InputError(path, f"no variable '{key}'" if key else "several variables, or none",
                     f"the name of a variable: {nearest(key, there)}", f"set `key`, or {_COPY}")


# -- NumPy -------------------------------------------------------------------------------------------------


def read_npy(path: Path) -> np.ndarray:
    """An array of numbers; object arrays (pickles) are refused."""
    with open_file(path, _NPY) as file:
        return _read_numpy(file, path, require_plain(path, _NPY))


def write_npy(path: Path, array: np.ndarray) -> None:
    """As :func:`numpy.save`, which does not say of a full disk that it is full where it is handed a real file."""
    with open(path, "wb") as file:
        np.save(SimpleNamespace(write=file.write), array)


def npy_shape(path: Path) -> tuple[int, ...]:
    """The shape of the array in a .npy file, from its header alone."""
    with open_file(path, _NPY) as file:
        return _numpy_header(file, path)[0]


def _read_npz(path: Path, key: str) -> np.ndarray:
    stored = require_plain(path, _NPZ)
    with open_file(path, _NPZ) as file, zipfile.ZipFile(file) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        member = members[_variable(path, key, members)]
        require_room(path, f"the array '{member.filename.removesuffix('.npy')}'", member.file_size, stored, _NPZ)
        with archive.open(member) as inside:
            array = _read_numpy(inside, path, member.file_size)
            inside.read(1)  # the checksum is compared at the end
            return array


def _numpy_header(file: IO[bytes] | zipfile.ZipExtFile, path: Path) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise InputError(path, f"an array in version {version[0]}.{version[1]} of the format", _NPY, _COPY)
    shape, columns_first, dtype = readers[version](file)
    if dtype.hasobject:
        raise InputError(path, "an unreadable file (Python objects, which could run any program: no "
                         "allow_pickle here)", _NPY, "save the numbers alone")
    if any(side < 0 for side in shape):
        raise InputError(path, f"an array of shape {shape}", _NPY, _COPY)
    return shape, columns_first, dtype


def _read_numpy(file: IO[bytes] | zipfile.ZipExtFile, path: Path, size: int) -> np.ndarray:
    """The array in an open .npy file of so many bytes."""
    shape, columns_first, dtype = _numpy_header(file, path)
    declared, there = math.prod(shape) * dtype.itemsize, size - file.tell()
    if declared > there:
        raise InputError(path, f"an unreadable file ({there} of the {declared} bytes of {dtype} of shape {shape})",
                         _NPY, _COPY)
    array = np.empty(shape[::-1] if columns_first else shape, dtype)
    content = array.reshape(-1).view(np.uint8).data if declared else memoryview(b"")
    done = 0
    while done < declared:
        count = file.readinto(content[done:])  # type: ignore[union-attr]
        if not count:
            raise InputError(path, f"an unreadable file ({done} of {declared} bytes)", _NPY, _COPY)
        done += count
    return native(array.T if columns_first else array)


# -- MATLAB and HDF5 ---------------------------------------------------------------------------------------


def _read_mat(path: Path, key: str) -> np.ndarray:
    if _is_modern(path):
        # HDF5 has the axes of MATLAB in the opposite order.
        return _read_hdf5(path, key).T
    return read_mat(path, _variable(path, key, variables_of(path, "a MATLAB file")))


def _is_modern(path: Path) -> bool:
    """Whether a MATLAB file is of version 7.3, which is HDF5."""
    with open_file(path, "a MATLAB file") as file:
        return b"MATLAB 7.3" in file.read(128)


@contextmanager
def open_hdf5(path: Path, needs: str = _HDF5) -> Iterator[h5py.File]:
    """A plain HDF5 file, open for reading; whatever is raised in the block becomes an InputError that names it."""
    import h5py  # which most datasets need not wait for

    require_plain(path, needs)
    with reading(path, needs), h5py.File(path, "r") as file:
        yield file


def hdf5_array(file: h5py.File, name: str, path: Path) -> h5py.Dataset | None:
    """The array of a name, which may be a path into groups; None if there is none.

    HDF5 files can hand out bytes of other files, by links, by raw storage outside, or as a virtual array. A label comes
    from the file that the message would name, so all of these are refused.

    Raises:
        InputError: the array lies, or may lie, in another file.
    """
    import h5py

    parts, place, followed = [part for part in name.split("/") if part not in ("", ".")], file["/"], 0
    while parts:
        if not isinstance(place, h5py.Group):
            return None
        part = parts.pop(0)
        link = place.get(part, getlink=True) if part in place.keys() else None  # noqa: SIM118 ("in" follows links)
        if link is None:
            return None
        if isinstance(link, h5py.HardLink):
            place = place[part]
        elif isinstance(link, h5py.SoftLink) and followed < 16:
            followed += 1
            target = [step for step in link.path.split("/") if step not in ("", ".")]
            parts = target + parts
            place = file["/"] if link.path.startswith("/") else place
        else:
            kind = "a link into another file" if isinstance(link, h5py.ExternalLink) else "a link without end"
            raise InputError(path, f"'{name}' as {kind}", _FOREIGN, "copy the array into this file (h5repack, h5copy)")
    if not isinstance(place, h5py.Dataset):
        return None
    if place.external or place.is_virtual:
        raise InputError(path, f"'{name}' with its numbers in another file", _FOREIGN,
                         "copy the array into this file (h5repack)")
    return place


def _read_hdf5(path: Path, key: str) -> np.ndarray:
    stored = require_plain(path, _HDF5)
    with open_hdf5(path) as file:
        if key and (item := hdf5_array(file, key, path)) is not None:
            return _hdf5_numbers(item, path, key, stored)
        if key and key in file and file.get(key, getclass=True, getlink=False) is type(file["/"]):
            raise InputError(path, f"a group at '{key}'", "an array", "correct `key`")
        arrays = {name: item for name in file if (item := hdf5_array(file, name, path)) is not None}
        name = _variable(path, key, arrays)
        return _hdf5_numbers(arrays[name], path, name, stored)


def _hdf5_numbers(item: h5py.Dataset, path: Path, name: str, stored: int) -> np.ndarray:
    if item.dtype.kind not in "biuf":
        raise InputError(path, f"{item.dtype} of shape {item.shape}", "an array of numbers", "check `key`")
    require_room(path, f"the array '{name}'", math.prod(item.shape or ()) * item.dtype.itemsize, stored, _HDF5)
    return native(np.asarray(item[()]))


# -- labels as numbers -------------------------------------------------------------------------------------


def flat(array: np.ndarray, path: Path | str, do: str = "check that the file belongs to this dataset") -> np.ndarray:
    """(h w) real numbers, from (h w), (h w 1), (1 h w), or a picture in color that is gray all over.

    Args:
        path: names the file in messages, here and below.
        do: the advice where it is something else.
    """
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[..., 0] if array.shape[-1] == 1 else array[0]
    if array.ndim == 3 and array.shape[-1] in (3, 4) and (array[..., :3] == array[..., :1]).all():
        array = array[..., 0]
    if array.ndim != 2 or not array.size or array.dtype.kind not in "biuf":
        raise InputError(path, f"{array.dtype} of shape {array.shape}", "real numbers of shape (h, w)", do)
    return array


def is_any(stored: np.ndarray, values: Iterable[float]) -> np.ndarray:
    """Where stored numbers are one of ``values``, as they look in the type of the data: 655.35 is no number of float32,
    and what a file holds in its place is the nearest one. Doubles that were floats once are met too. Of whole numbers,
    -1 became 65535 in a file without signs of 16 bits, and 65535 became -1 in one with signs."""
    values = [float(value) for value in values]
    kind = stored.dtype
    if kind.kind == "f":
        with np.errstate(over="ignore"):  # what the type cannot hold became infinite in the file, too
            looks = {float(kind.type(value)) for value in values}
            if kind.itemsize > 4:
                looks |= {float(np.float32(value)) for value in values}
        found = np.isin(stored, np.array(sorted(looks, key=repr), kind))
        return found | np.isnan(stored) if any(map(math.isnan, values)) else found
    whole = [int(value) for value in values if value.is_integer()]
    if kind.kind == "b":
        return np.isin(stored, np.array([value for value in whole if value in (0, 1)], kind))
    lowest, highest, count = int(np.iinfo(kind).min), int(np.iinfo(kind).max), 1 << 8 * kind.itemsize
    looks = {value if lowest <= value <= highest else (value - lowest) % count + lowest
             for value in whole if -count // 2 <= value < count}
    return np.isin(stored, np.array(sorted(looks), kind))


def require_unit_vectors(vectors: np.ndarray, valid: np.ndarray, path: Path | str) -> None:
    """Refuse vectors (3 h w) that are stored in another form than they seem to be. Averages of normals are shorter than
    1, but only at edges; where most of a map is not of length 1, it is no map of unit vectors.

    Args:
        valid: (h w), where there is one.
    """
    step = max(1, math.isqrt(valid.size // 4096))  # a grid of some thousand pixels tells as much as all of them
    known = vectors[:, ::step, ::step][:, valid[::step, ::step]]
    if not known.size:
        return
    length = np.linalg.norm(known, axis=0)
    # As if every number n were stored as (n + 1) / 2, with or without a sign for its axis
    decoded = np.abs(np.linalg.norm(2 * np.abs(known) - 1, axis=0) - 1)
    if np.mean(decoded <= 0.02) >= 0.9 and np.mean(np.abs(length - 1) <= 0.02) < 0.9:
        raise InputError(path, f"vectors of length {length.min():.3g} to {length.max():.3g}, as (n + 1) / 2 has",
                         "unit vectors", "store 2 v - 1 instead of v, or a picture of 8 or 16 bits")
    if np.mean(np.abs(length - 1) <= 0.1) < 0.5:
        raise InputError(path, f"vectors of a length of {np.median(length):.3g} (median)", "unit vectors",
                         "normalize them")


def class_ids(array: np.ndarray, path: Path | str, lowest: int, highest: int,
              void: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids counted from 0 (uint16) and the mask of labeled pixels, from (h w) ids ``lowest..highest`` and
    ``void``."""
    array = flat(array, path)
    labeled = array != void
    wrong = labeled & ~((array >= lowest) & (array <= highest) & (array == np.floor(array)))  # NaN included
    if wrong.any():
        raise InputError(path, f"class id {array[wrong][0]:g}",
                         f"whole numbers from {lowest} to {highest}, or {void} where there is no label",
                         "check that the segmentation has these classes")
    return np.where(labeled, array - lowest, 0).astype(np.uint16), labeled


def read_npy_color(path: Path) -> UInt8[Tensor, "3 h w"]:
    """A picture stored as floats (h w 3) in [0, 1], rounded to 8 bits, from which it was made."""
    import torch

    array = read_npy(path)
    if array.ndim != 3 or array.shape[-1] != 3 or not array.size or array.dtype.kind != "f":
        raise InputError(path, f"{array.dtype} of shape {array.shape}", "floating point of shape (h, w, 3)",
                         "check that the file holds an image")
    if not (array.min() >= 0 and array.max() <= 1):  # NaN included
        raise InputError(path, f"values from {array.min():g} to {array.max():g}", "values from 0 to 1",
                         "divide the image by 255")
    return torch.from_numpy(np.rint(array * 255).astype(np.uint8)).permute(2, 0, 1)
