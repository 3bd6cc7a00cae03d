"""MATLAB files: what is damaged is refused before scipy's reader could end the process."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from polyptych.data._matlab import check, load_mat, read_mat, variables_of
from polyptych.errors import InputError

MASK = (np.arange(24).reshape(4, 6) % 2).astype(np.uint8)


def written(path: Path, variables: dict, **options) -> bytes:
    savemat(path, variables, **options)
    return path.read_bytes()


@pytest.mark.parametrize("compressed", [True, False])
def test_every_kind_of_element_passes(tmp_path: Path, compressed: bool) -> None:
    cell = np.empty(3, object)
    cell[:] = [MASK, "words", {"a": 1.5, "b": np.zeros((2, 2, 3))}]
    variables = {"mask": MASK, "cell": cell, "struct": {"deep": {"er": np.arange(3)}}, "empty": np.zeros((0, 3)),
                 "complex": np.ones((2, 2)) * 1j, "text": "x" * 100, "flag": np.array([[True]])}
    written(tmp_path / "a.mat", variables, do_compression=compressed)
    assert sorted(variables_of(tmp_path / "a.mat", "it")) == sorted(variables)
    assert set(load_mat(tmp_path / "a.mat", "it")) == set(variables)
    assert np.array_equal(read_mat(tmp_path / "a.mat", "mask"), MASK)


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


def test_any_changed_byte_is_read_or_refused(tmp_path: Path) -> None:
    """Each byte of a small file as each of 64 values: the process lives on."""
    path = tmp_path / "a.mat"
    good = written(path, {"mask": MASK})
    refused = 0
    for place in range(120, len(good)):
        for value in (*range(48), *range(48, 256, 13)):
            path.write_bytes(good[:place] + bytes([value]) + good[place + 1:])
            try:
                read_mat(path, "mask")
            except InputError:
                refused += 1
    assert refused > 500


@pytest.mark.parametrize(("element", "said"), [
    (b"\x0e\0\0\0\x20\0\0\0" + bytes(8), "cut off"), (b"\x08\0\0\0\0\0\0\0", "type 8"),
    (b"\x02\0\x05\0" + bytes(4), "small element of 5"), (b"\x0e\0\0\0\x04\0\0\0" + bytes(8), "cut off"),
    (b"\x0f\0\0\0\x10\0\0\0" + zlib.compress(b"\x0a\0\0\0\0\0\0\0")[:16].ljust(16, b"\0"), "type 10")])
def test_elements_that_are_none(element: bytes, said: str) -> None:
    header = b"MATLAB 5.0".ljust(124) + b"\x00\x01IM"
    with pytest.raises(ValueError, match=said):
        check(header + element)
