"""MATLAB files up to version 7.2, read by the description of their format (MathWorks, "MAT-File Format").

scipy's reader looks up the type of every element without asking whether there is such a type, which ends the whole
process where one byte is wrong, and takes memory for whatever a file declares. This one checks each type, size and
count before it follows them. Only files of version 4, which have no elements, are left to scipy.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyptych.data.files import read_bytes, reading, require_room
from polyptych.errors import InputError

_HEADER, _TAG = 128, 8
_INT8, _UINT8, _UINT16, _INT32, _UINT32, _MATRIX, _COMPRESSED, _UTF8, _UTF16, _UTF32 = 1, 2, 4, 5, 6, 14, 15, 16, 17, 18
_TYPES = frozenset({*range(1, 8), 9, *range(12, 19)})
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CELL, _STRUCT, _OBJECT, _CHAR, _SPARSE = 1, 2, 3, 4, 5  # classes of arrays; 6 to 15 are numbers
_COMPLEX = 0x0800  # a flag
_KINDS = {_SPARSE: "a sparse matrix", 16: "a function", 17: "an object"}
_PEEK = 1 << 12  # bytes of a compressed variable that hold its name

MOST_ELEMENTS = 1 << 17
"""Arrays within one file, all members of cells and structs: each takes a hundred bytes of memory, and eight in the
file."""


class Unread:
    """Stands where a file holds something that is no array of numbers, text, cells or structs."""

    def __init__(self, kind: str):
        self.kind = kind


def read_mat(path: Path, key: str) -> np.ndarray:
    """One variable of a MATLAB file (version 7.2 or older)."""
    variables = load_mat(path, f"a MATLAB file (at most version 7.2) with the variable '{key}'", [key])
    if key not in variables:
        raise InputError(path, "a MATLAB file without that variable", f"the variable '{key}'",
                         "check that the file belongs to this dataset")
    found = variables[key]
    if not isinstance(found, np.ndarray):
        raise InputError(path, f"'{key}' as {found.kind if isinstance(found, Unread) else type(found).__name__}",
                         "an array", "save it with full(...), or check that the file belongs to this dataset")
    return found


def load_mat(path: Path, needs: str, names: Sequence[str] | None = None) -> dict[str, Any]:
    """The variables of a file, those of ``names`` if given: arrays of numbers in the type in which they are stored,
    text row by row, cells as arrays of objects, structs as arrays with named fields; :class:`Unread` for other things.

    Args:
        needs: what is expected, for the message.

    Raises:
        InputError: the file is missing, damaged, no MATLAB file, or declares more than it may
            (:func:`polyptych.data.files.require_room`).
    """
    content = read_bytes(path, needs)
    with reading(path, needs):
        if _is_old(content):
            from scipy.io import loadmat

            old = loadmat(io.BytesIO(content), variable_names=names)
            return {name: value for name, value in old.items() if not name.startswith("__")}
        return {name: reader.value() for name, reader in _variables(content, path, needs)
                if names is None or name in names}


def variables_of(path: Path, needs: str) -> list[str]:
    """The names of all variables; errors as :func:`load_mat`."""
    content = read_bytes(path, needs)
    with reading(path, needs):
        if _is_old(content):
            from scipy.io import whosmat

            return [name for name, *_ in whosmat(io.BytesIO(content))]
        return [name for name, _ in _variables(content, path, needs)]


def _is_old(content: bytes) -> bool:
    """Version 4 begins with a small number, the others with text."""
    return 0 in content[:4]


def _variables(content: bytes, path: Path, needs: str) -> Iterator[tuple[str, _Variable]]:
    """Name and reader of each variable of a file of version 5, in order."""
    if len(content) < _HEADER:
        raise ValueError("a file of less than 128 bytes")
    if content[126:128] not in (b"IM", b"MI"):
        raise ValueError("no mark of the byte order")
    order = "<" if content[126:128] == b"IM" else ">"
    version = struct.unpack_from(f"{order}H", content, 124)[0] >> 8
    if version == 2:
        raise InputError(path, "a MATLAB file of version 7.3", needs, "save it with -v7")
    if version != 1:
        raise ValueError(f"version {version} of the format")
    budget = _Budget(path, needs, len(content))
    place = _HEADER
    while place + _TAG <= len(content):
        element = _Element(memoryview(content), place, len(content), order)
        variable = _Variable(element, order, budget)
        if name := variable.name():  # what has none belongs to MATLAB itself
            yield name, variable
        place = element.following


class _Budget:
    """What a file may still unpack to."""

    def __init__(self, path: Path, needs: str, stored: int):
        self._path, self._needs, self._stored = path, needs, stored
        self._unpacked, self._elements = 0, 0

    def unpack(self, size: int) -> None:
        self._unpacked += size
        require_room(self._path, "a MATLAB file", self._unpacked, self._stored, self._needs)

    def element(self) -> None:
        self._elements += 1
        if self._elements > MOST_ELEMENTS:
            raise InputError(self._path, f"more than {MOST_ELEMENTS} arrays in cells and structs", self._needs,
                             "check that this is the file you mean; do not trust one that is not yours")


class _Element:
    """One element: its type, and its data from ``start`` to ``end`` of ``content``."""

    __slots__ = ("content", "end", "following", "kind", "start")

    def __init__(self, content: memoryview, place: int, limit: int, order: str):
        if limit - place < _TAG:
            raise ValueError(f"an element that is cut off at byte {place}")
        kind, size = struct.unpack_from(f"{order}II", content, place)
        if kind >> 16:  # a small element keeps its data, at most four bytes, in the tag
            kind, size, self.start, self.following = kind & 0xFFFF, kind >> 16, place + 4, place + _TAG
            if size > 4:
                raise ValueError(f"a small element of {size} bytes at byte {place}")
        else:
            self.start = place + _TAG
            self.following = self.start + size + (0 if kind == _COMPRESSED else -size % 8)
        if kind not in _TYPES:
            raise ValueError(f"an element of type {kind}, which does not exist, at byte {place}")
        self.content, self.kind, self.end = content, kind, self.start + size
        if self.end > limit:
            raise ValueError(f"an element that is cut off at byte {place}")

    @property
    def data(self) -> memoryview:
        return self.content[self.start:self.end]


class _Variable:
    """A variable of the file, perhaps still compressed."""

    def __init__(self, element: _Element, order: str, budget: _Budget):
        if element.kind not in (_MATRIX, _COMPRESSED):
            raise ValueError(f"an element of type {element.kind} where a variable should be")
        self._element, self._order, self._budget = element, order, budget

    def name(self) -> str:
        if self._element.kind == _MATRIX:
            return _Matrix(self._element, self._order, self._budget).name
        head = zlib.decompressobj().decompress(self._element.data, _PEEK)
        if len(head) < _TAG:
            raise ValueError("a compressed variable that is cut off")
        # As if it ended here: only what stands before the numbers is looked at.
        whole = struct.pack(f"{self._order}II", struct.unpack_from(f"{self._order}I", head)[0], len(head) - _TAG)
        start = _Element(memoryview(whole + head[_TAG:]), 0, len(head), self._order)
        return _Matrix(start, self._order, self._budget).name

    def value(self) -> Any:
        element = self._element
        if element.kind == _COMPRESSED:
            unpacking = zlib.decompressobj()
            head = unpacking.decompress(element.data, _TAG)
            if len(head) < _TAG:
                raise ValueError("a compressed variable that is cut off")
            size = struct.unpack_from(f"{self._order}I", head, 4)[0]
            self._budget.unpack(size)
            body = unpacking.decompress(unpacking.unconsumed_tail, size) if size else b""
            rest = unpacking.decompress(unpacking.unconsumed_tail, _TAG)  # the checksum is compared at the end
            if len(body) < size or not unpacking.eof or unpacking.unconsumed_tail:
                raise ValueError("a compressed variable of another size than it says")
            content = memoryview(b"".join((head, body, rest)))
            element = _Element(content, 0, len(content), self._order)
        return _Matrix(element, self._order, self._budget).value()


class _Matrix:
    """One array: flags, shape and name, read at once, and what it holds, read when asked for."""

    def __init__(self, element: _Element, order: str, budget: _Budget):
        if element.kind != _MATRIX:
            raise ValueError(f"an element of type {element.kind} where an array should be")
        self._content, self._place, self._end = element.content, element.start, element.end
        self._order, self._budget = order, budget
        self.name, self._shape, self._class, self._flags = "", (1, 0), 6, 0
        self._empty = element.start == element.end  # how members that were never set are stored
        if self._empty:
            return
        flags = self._next(_UINT32)
        if len(flags.data) != 8:
            raise ValueError(f"flags of {len(flags.data)} bytes")
        self._flags = struct.unpack_from(f"{order}I", flags.data)[0]
        self._class = self._flags & 0xFF
        if not 1 <= self._class <= 17:
            raise ValueError(f"an array of class {self._class}, which does not exist")
        if self._class == 17:  # has a name and no shape
            self.name = _latin(self._next(_INT8, _UINT8, _UTF8))
            return
        shape = self._next(_INT32, _UINT32).data
        self._shape = struct.unpack(f"{order}{len(shape) // 4}i", shape[:len(shape) // 4 * 4])
        if len(self._shape) < 2 or len(self._shape) > 32 or min(self._shape) < 0:
            raise ValueError(f"an array of shape {self._shape}")
        self.name = _latin(self._next(_INT8, _UINT8, _UTF8))

    def value(self) -> Any:
        self._budget.element()
        if self._empty:
            return np.empty((1, 0))
        if self._class in _KINDS:
            return Unread(_KINDS[self._class])
        if self._class == _CELL:
            return self._objects(math.prod(self._shape), 1)[:, 0].reshape(self._shape, order="F")
        if self._class in (_STRUCT, _OBJECT):
            return self._structs()
        return self._text() if self._class == _CHAR else self._numbers()

    def _next(self, *kinds: int) -> _Element:
        element = _Element(self._content, self._place, self._end, self._order)
        if element.kind not in kinds:
            raise ValueError(f"an element of type {element.kind} at byte {self._place}")
        self._place = element.following
        return element

    def _numbers(self) -> np.ndarray:
        real = self._part()
        return real + 1j * self._part() if self._flags & _COMPLEX else real

    def _part(self) -> np.ndarray:
        element = self._next(*_NUMBERS)
        kind = np.dtype(f"{self._order}{_NUMBERS[element.kind]}")
        if math.prod(self._shape) * kind.itemsize != len(element.data):
            raise ValueError(f"{len(element.data)} bytes for an array of {kind.name} of shape {self._shape}")
        numbers = np.frombuffer(element.data, kind).reshape(self._shape, order="F")
        return numbers.astype(kind.newbyteorder("="))  # a copy, which can be written to

    def _text(self) -> np.ndarray:
        """A string for each row, without the last axis."""
        element = self._next(*_NUMBERS, _UTF8, _UTF16, _UTF32)
        end = "le" if self._order == "<" else "be"
        encoding = {_UTF8: "utf-8", _UTF16: f"utf-16-{end}", _UINT16: f"utf-16-{end}", _UTF32: f"utf-32-{end}"}
        text = bytes(element.data).decode(encoding.get(element.kind, "latin-1"), "replace")
        if len(text) != math.prod(self._shape):  # a letter may take the place of two
            return np.array([text])
        letters = np.array(list(text), "U1").reshape(self._shape, order="F")
        if not letters.size:
            return np.array([], "U1")
        rows = ["".join(row) for row in letters.reshape(-1, self._shape[-1])]
        return np.array(rows).reshape(self._shape[:-1])

    def _structs(self) -> np.ndarray:
        if self._class == _OBJECT:
            self._next(_INT8, _UINT8, _UTF8)  # the name of its class
        width = struct.unpack(f"{self._order}i", self._next(_INT32, _UINT32).data)[0]
        stored = bytes(self._next(_INT8, _UINT8, _UTF8).data)
        if width < 1 or len(stored) % width:
            raise ValueError(f"field names of {width} bytes")
        fields = [stored[start:start + width].split(b"\0")[0].decode("latin-1")
                  for start in range(0, len(stored), width)]
        for number, field in enumerate(fields):
            if field in fields[:number]:
                fields[number] = f"{field} ({number})"
        count = math.prod(self._shape)
        members = self._objects(count, len(fields))
        structs = np.empty(count, [(field, object) for field in fields])
        for number, field in enumerate(fields):
            structs[field] = members[:, number]
        return structs.reshape(self._shape, order="F")

    def _objects(self, count: int, each: int) -> np.ndarray:
        """The following arrays, as (count, each) objects."""
        if count * each > (self._end - self._place) // _TAG or count > MOST_ELEMENTS:
            raise ValueError(f"{count} members where there is no room for them")
        members = np.empty(count * each, object)
        for number in range(count * each):
            members[number] = _Matrix(self._next(_MATRIX), self._order, self._budget).value()
        return members.reshape(count, each)


def _latin(element: _Element) -> str:
    return bytes(element.data).decode("latin-1")
