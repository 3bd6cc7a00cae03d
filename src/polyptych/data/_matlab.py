"""MATLAB files up to version 7.2, after a look at their structure.

scipy looks up the type of every element without asking whether there is such a type, and ends the whole process where
there is not. So types and sizes are checked first, by the description of the format (MathWorks, "MAT-File Format").
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyptych.data._files import reading
from polyptych.errors import InputError

HEADER, TAG = 128, 8
MATRIX, COMPRESSED = 14, 15
TYPES = frozenset({*range(1, 8), 9, *range(12, 19)})


def read_mat(path: Path, key: str) -> np.ndarray:
    """One variable of a MATLAB file (version 7.2 or older)."""
    variables = load_mat(path, f"a MATLAB file (at most version 7.2) with the variable '{key}'", [key])
    if key not in variables:
        raise InputError(path, "a MATLAB file without it", f"the variable '{key}'",
                         "check that the file belongs to this dataset")
    if not isinstance(variables[key], np.ndarray):
        raise InputError(path, f"'{key}' as {type(variables[key]).__name__}", "an array",
                         "check that the file belongs to this dataset")
    return variables[key]


def load_mat(path: Path, needs: str, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The variables of a file, those of ``names`` if given.

    Args:
        needs: what is expected, for the message.

    Raises:
        InputError: the file is missing, damaged, or no MATLAB file.
    """
    from scipy.io import loadmat  # a tenth of a second that other layouts need not spend

    with reading(path, needs), open(path, "rb") as file:  # loadmat itself does not say that a file is missing
        content = file.read()
        check(content)
        variables = loadmat(io.BytesIO(content), variable_names=names)
    return {name: value for name, value in variables.items() if not name.startswith("__")}


def variables_of(path: Path, needs: str) -> list[str]:
    """The names of all variables; errors as :func:`load_mat`."""
    from scipy.io import whosmat

    with reading(path, needs), open(path, "rb") as file:
        content = file.read()
        check(content)
        return [name for name, *_ in whosmat(io.BytesIO(content))]


def check(content: bytes) -> None:
    """
    Raises:
        ValueError: an element of a type that there is not, or that ends outside of the one that holds it.
    """
    if len(content) < HEADER or 0 in content[:4]:
        return  # of version 4, which has no elements, or nothing that scipy takes for a MATLAB file
    order = "<" if content[126:128] == b"IM" else ">"
    if struct.unpack_from(f"{order}H", content, 124)[0] >> 8 != 1:
        return  # version 7.3 is HDF5
    place = HEADER
    while place + TAG <= len(content):
        place = _element(memoryview(content), place, len(content), order)


def _element(content: memoryview, place: int, end: int, order: str) -> int:
    """Check one element and what it holds; the place of the next."""
    if end - place < TAG:
        raise ValueError(f"an element that is cut off at byte {place}")
    kind, size = struct.unpack_from(f"{order}II", content, place)
    if kind >> 16:  # a small element keeps its data, at most four bytes, in the tag
        kind, size, start, following = kind & 0xFFFF, kind >> 16, place + 4, place + TAG
        if size > 4:
            raise ValueError(f"a small element of {size} bytes at byte {place}")
    else:
        start = place + TAG
        following = start + size if kind == COMPRESSED else start + size + -size % 8
    if kind not in TYPES:
        raise ValueError(f"an element of type {kind}, which does not exist, at byte {place}")
    if start + size > end:
        raise ValueError(f"an element that is cut off at byte {place}")
    if kind == COMPRESSED:
        inside = memoryview(zlib.decompress(content[start:start + size]))
        _element(inside, 0, len(inside), order)
    elif kind == MATRIX:
        inner = start
        while inner < start + size:
            inner = _element(content, inner, start + size, order)
    return following
