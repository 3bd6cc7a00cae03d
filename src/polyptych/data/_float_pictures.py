"""Floating-point pictures of renderers and stereo benchmarks: OpenEXR (by its authors' package) and PFM."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from polyptych.data.files import open_file, reading, require_plain, require_room
from polyptych.errors import InputError, nearest

_EXR, _PFM = "an OpenEXR file", "a portable float map (.pfm)"
_GROUPS = ("RGB", "XYZ", "rgb", "xyz")  # three channels that are one array, in this order


def require_exr(path: Path) -> ModuleType:
    """The package that reads OpenEXR.

    Raises:
        InputError: it is not installed.
    """
    try:
        import OpenEXR
    except ImportError:
        raise InputError(path, "an OpenEXR file, which needs another package", "the package OpenEXR",
                         "pip install 'polyptych[formats]'") from None
    module: ModuleType = OpenEXR
    return module


def read_exr(path: Path, key: str = "") -> np.ndarray:
    """One channel as (h w), or three as (h w 3).

    Args:
        key: name of a channel (``Z``, ``ViewLayer.Depth.Z``), or what comes before the last dot of three that belong
            together (``Normal`` of ``Normal.X``, ``Normal.Y``, ``Normal.Z``). Needless where the file has only one
            channel, or only R, G, B (and A) or X, Y, Z.
    """
    package = require_exr(path)
    stored = require_plain(path, _EXR)
    with reading(path, _EXR):
        header: dict[str, Any] = package.File(str(path), separate_channels=True, header_only=True).header()
        names = [channel.name for channel in header["channels"]]
        first, last = header["dataWindow"]
        height, width = int(last[1]) - int(first[1]) + 1, int(last[0]) - int(first[0]) + 1
        require_room(path, f"{len(names)} channels of {height}x{width}", 4 * height * width * len(names), stored, _EXR)
        wanted = _channels(path, names, key)
        with package.File(str(path), separate_channels=True) as file:
            found = [np.array(file.channels()[name].pixels) for name in wanted]
        if any(array.shape != (height, width) for array in found):
            raise InputError(path, "channels of several sizes", "one number for each pixel",
                             "render without subsampling")
    return found[0] if len(found) == 1 else np.stack(found, -1)


def _channels(path: Path, names: list[str], key: str) -> list[str]:
    if key in names:
        return [key]
    before = f"{key}." if key else ""
    for group in _GROUPS:
        wanted = [before + letter for letter in group]
        alone = key or set(names) <= {*wanted, "A"}
        if alone and set(wanted) <= set(names):
            return wanted
    if not key and len(names) == 1:
        return names
    raise InputError(path, f"no channel '{key}'" if key else f"{len(names)} channels", "the name of a channel: "
                     f"{nearest(key, names)}", "set `key`")


def read_pfm(path: Path) -> np.ndarray:
    """(h w) or (h w 3) of 32 bits; rows are stored from the bottom to the top."""
    with open_file(path, _PFM) as file:
        kind = file.readline(8).strip()
        try:
            width, height = map(int, file.readline(64).split())
            scale = float(file.readline(64))
        except ValueError:
            kind, width, height, scale = b"", 0, 0, math.nan
        if kind not in (b"Pf", b"PF") or min(width, height) < 1 or not math.isfinite(scale) or not scale:
            raise InputError(path, "an unreadable file (no header of this format)", _PFM,
                             "copy the file again; it is damaged or of another format")
        shape = (height, width) if kind == b"Pf" else (height, width, 3)
        declared, there = 4 * math.prod(shape), require_plain(path, _PFM) - file.tell()
        if there < declared:
            raise InputError(path, f"an unreadable file ({there} of {declared} bytes)", _PFM,
                             "copy the file again; it is damaged")
        array = np.frombuffer(file.read(declared), "<f4" if scale < 0 else ">f4").reshape(shape)
    return np.ascontiguousarray(array[::-1]).astype(np.float32)
