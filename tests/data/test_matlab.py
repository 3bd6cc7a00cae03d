"""MATLAB files: read as scipy reads them; what is damaged or declares too much is refused before it is followed."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from polyptych.data import _matlab
from polyptych.data._matlab import Unread, load_mat, read_mat, variables_of
from polyptych.errors import InputError

MEMBERS = 1000
MASK = (np.arange(24).reshape(4, 6) % 2).astype(np.uint8)


def written(path: Path, variables: dict, **options) -> bytes:
    savemat(path, variables, **options)
    return path.read_bytes()


def same(ours, theirs) -> bool:
    """Equal, down to the members of cells and structs."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape or ours.dtype.names != theirs.dtype.names:
        return False
    if ours.dtype.names:
        return all(same(ours[field], theirs[field]) for field in ours.dtype.names)
    if ours.dtype == object:
        return all(same(a, b) for a, b in zip(ours.flat, theirs.flat, strict=True))
    return ours.dtype.kind == theirs.dtype.kind and np.array_equal(ours, theirs)


@pytest.mark.parametrize("compressed", [True, False])
def test_every_kind_of_element_is_what_scipy_reads(tmp_path: Path, compressed: bool) -> None:
    cell = np.empty((1, 3), object)
    cell[0] = [MASK, "words", {"a": 1.5, "b": np.zeros((2, 2, 3))}]
    variables = {"mask": MASK, "cell": cell, "struct": {"deep": {"er": np.arange(3)}}, "empty": np.zeros((0, 3)),
                 "complex": np.ones((2, 2)) * 1j, "text": "x" * 100, "flag": np.array([[True]]), "accents":
                 "\xe4\u20ac", "volume": np.arange(24.0).reshape(2, 3, 4), "single": np.float32(3), "wide":
                 np.int64([[-1]])}
    written(tmp_path / "a.mat", variables, do_compression=compressed)
    ours = load_mat(tmp_path / "a.mat", "it")
    assert variables_of(tmp_path / "a.mat", "it") == list(ours) == list(variables)
    theirs = loadmat(tmp_path / "a.mat")
    assert [name for name in ours if not same(ours[name], theirs[name])] == []
    mask = read_mat(tmp_path / "a.mat", "mask")
    assert mask.flags.writeable and mask.dtype.isnative


def test_files_of_the_other_byte_order(tmp_path: Path) -> None:
    values = np.arange(6, dtype=">f8")
    body = element(6, bytes((0, 0, 0, 6)) + bytes(4)) + element(5, struct.pack(">ii", 2, 3)) + element(1, b"x")
    content = element(14, body + element(9, values.tobytes()))
    (tmp_path / "a.mat").write_bytes(b"MATLAB 5.0".ljust(124) + b"\x01\x00MI" + content)
    found = read_mat(tmp_path / "a.mat", "x")
    assert found.tolist() == [[0, 2, 4], [1, 3, 5]] and found.dtype.isnative


def element(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data.ljust(-(-len(data) // 8) * 8, b"\0")


def test_what_is_no_array_is_told(tmp_path: Path) -> None:
    from scipy.sparse import eye

    written(tmp_path / "a.mat", {"mask": MASK, "sparse": eye(3, format="csc")})
    assert isinstance(load_mat(tmp_path / "a.mat", "it")["sparse"], Unread)
    with pytest.raises(InputError, match="'sparse' as a sparse matrix"):
        read_mat(tmp_path / "a.mat", "sparse")
    with pytest.raises(InputError, match="a MATLAB file without that variable; needs the variable 'max'"):
        read_mat(tmp_path / "a.mat", "max")


def matrix(kind: int, shape: tuple[int, ...], rest: bytes = b"", name: bytes = b"x") -> bytes:
    """An array of a class, as it stands in a file of this machine's byte order."""
    def part(number: int, data: bytes) -> bytes:
        return struct.pack("<II", number, len(data)) + data.ljust(-(-len(data) // 8) * 8, b"\0")

    start = part(6, struct.pack("<II", kind, 0)) + part(5, struct.pack(f"<{len(shape)}i", *shape)) + part(1, name)
    return part(14, start + rest)


def packed(content: bytes) -> bytes:
    small = zlib.compress(content)
    return struct.pack("<II", 15, len(small)) + small


HEADER = b"MATLAB 5.0".ljust(124) + b"\x00\x01IM"


@pytest.mark.parametrize(("content", "said"), [
    # what a megabyte of zeros in a compressed element says of itself, without being there
    (packed(struct.pack("<II", 14, 0xD0000000) + matrix(9, (1 << 15, 1 << 15))[8:]),
     "that would take 3.2 GiB of memory"),
    (matrix(1, (1 << 20, 1 << 10)), "1073741824 members where there is no room"),
    (matrix(2, (1 << 30, 1), struct.pack("<IIi", 5, 4, 1) + bytes(4) + struct.pack("<II", 1, 1) + b"a" + bytes(7)),
     "members where there is no room"),
    (matrix(4, (1, 1 << 30)), "cut off"),
    (matrix(9, (1 << 15, 1 << 15), struct.pack("<II", 2, 8) + bytes(8)), "8 bytes for an array of uint8"),
    (matrix(1, (1, MEMBERS), struct.pack("<II", 14, 0) * MEMBERS), "more than 1000 arrays"),
], ids=["size", "cell", "struct", "text", "numbers", "members"])
def test_bombs_are_refused_by_what_they_declare(tmp_path: Path, monkeypatch, content: bytes, said: str) -> None:
    monkeypatch.setattr(_matlab, "MOST_ELEMENTS", MEMBERS)
    (tmp_path / "a.mat").write_bytes(HEADER + content)
    with pytest.raises(InputError, match=said):
        load_mat(tmp_path / "a.mat", "it")


def test_old_files_are_left_to_scipy(tmp_path: Path) -> None:
    written(tmp_path / "a.mat", {"mask": MASK}, format="4")
    assert np.array_equal(read_mat(tmp_path / "a.mat", "mask"), MASK)


@pytest.mark.parametrize(("place", "value"), [(176, 0), (177, 1)])
def test_a_type_that_does_not_exist(tmp_path: Path, place: int, value: int) -> None:
    """scipy 1.17 reads these two by a pointer to nowhere."""
    content = bytearray(written(tmp_path / "a.mat", {"mask": MASK}))
    content[place] = value
    (tmp_path / "a.mat").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.mat.*which does not exist"):
        read_mat(tmp_path / "a.mat", "mask")


@pytest.mark.parametrize("one_in", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_any_changed_byte_is_read_or_refused(tmp_path: Path, one_in: int) -> None:
    """Each byte of a small file as each type of element and a few others: the process lives on."""
    path = tmp_path / "a.mat"
    good = written(path, {"mask": MASK})
    refused = 0
    for place in range(120, len(good)):
        for number, value in enumerate((*range(20), 48, 128, 255)):
            if (place + number) % one_in:
                continue
            path.write_bytes(good[:place] + bytes([value]) + good[place + 1:])
            try:
                read_mat(path, "mask")
            except InputError:
                refused += 1
    assert refused > 200 / one_in


@pytest.mark.parametrize(("wrong", "said"), [
    (b"\x0e\0\0\0\x20\0\0\0" + bytes(8), "cut off"), (b"\x08\0\0\0\0\0\0\0", "type 8"),
    (b"\x02\0\x05\0" + bytes(4), "small element of 5"), (b"\x0e\0\0\0\x04\0\0\0" + bytes(8), "cut off"),
    (b"\x0f\0\0\0\x10\0\0\0" + zlib.compress(b"\x0a\0\0\0\0\0\0\0")[:16].ljust(16, b"\0"), "type 10")])
def test_elements_that_are_none(tmp_path: Path, wrong: bytes, said: str) -> None:
    (tmp_path / "a.mat").write_bytes(HEADER + wrong)
    with pytest.raises(InputError, match=said):
        load_mat(tmp_path / "a.mat", "it")
