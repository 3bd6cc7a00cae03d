"""Arrays: what a file declares is checked before memory is taken, nothing comes from another file, numbers are met in
the type of the data."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from polyptych.cli import main
from polyptych.data.arrays import is_any, npy_shape, read_array, read_npy, require_unit_vectors, write_npy
from polyptych.errors import InputError
from polyptych.prediction.point_cloud import PointCloud

VALUES = np.arange(24, dtype=np.float32).reshape(4, 6)


def npy_header(shape: tuple[int, ...], kind: str = "<f8") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize("kind", [">f4", "<f2", ">i2", "|b1", "<u8"])
@pytest.mark.parametrize("columns_first", [False, True])
def test_arrays_of_any_order(tmp_path: Path, kind: str, columns_first: bool) -> None:
    stored = np.asarray(VALUES.astype(kind), order="F" if columns_first else "C")
    np.save(tmp_path / "a.npy", stored)
    np.savez_compressed(tmp_path / "a.npz", stored)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["deep/a"] = stored
    for name, key in (("a.npy", ""), ("a.npz", "arr_0"), ("a.h5", "deep/a")):
        found = read_array(tmp_path / name, key)
        assert np.array_equal(found, stored) and found.dtype == stored.dtype.newbyteorder("=") and found.flags.writeable
    assert npy_shape(tmp_path / "a.npy") == (4, 6)


def test_files_that_declare_too_much(tmp_path: Path) -> None:
    big = npy_header((1 << 15, 1 << 15))
    (tmp_path / "a.npy").write_bytes(big + bytes(100))
    with zipfile.ZipFile(tmp_path / "b.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", big + bytes(3 << 19))
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("x.npy", big)
    content = bytearray((tmp_path / "c.npz").read_bytes())
    place = content.index(b"PK\x01\x02") + 24  # the size in the index, before compression
    content[place:place + 4] = struct.pack("<I", 0xC0000000)
    (tmp_path / "c.npz").write_bytes(content)
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file.create_dataset("x", (1 << 15, 1 << 15), "f8", chunks=(256, 256), compression="gzip")
    for name, said in (("a.npy", "100 of the 8589934592 bytes"), ("b.npz", "1572864 of the 8589934592 bytes"),
                       ("c.npz", "would take 3.0 GiB"), ("d.h5", "would take 8.0 GiB")):
        with pytest.raises(InputError, match=said):
            read_array(tmp_path / name)


def test_programs_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(InputError, match="could run any program"):
        read_npy(tmp_path / "a.npy")


def test_bytes_of_other_files_are_never_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(range(200)))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = VALUES
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["good"] = VALUES
        file["inside"] = h5py.SoftLink("/good")
        file["external"] = h5py.ExternalLink("other.h5", "/x")
        file["chain"] = h5py.SoftLink("/external")
        file["circle"] = h5py.SoftLink("/circle")
        file.create_dataset("raw", (4, 6), "u1", external=[("secret", 0, 24)])
        layout = h5py.VirtualLayout((4, 6), "f4")
        layout[...] = h5py.VirtualSource("other.h5", "x", (4, 6))
        file.create_virtual_dataset("virtual", layout)
        file["group/link"] = h5py.ExternalLink("other.h5", "/")
    for key in ("good", "inside"):
        assert np.array_equal(read_array(tmp_path / "a.h5", key), VALUES)
    for key in ("external", "chain", "circle", "raw", "virtual", "group/link/x"):
        with pytest.raises(InputError, match=r"a\.h5: got .*(another file|without end)"):
            read_array(tmp_path / "a.h5", key)


@pytest.mark.parametrize("array", [VALUES, VALUES.T, np.array(3.5), np.zeros((0, 3)), np.arange(70_000)[::-1]])
def test_arrays_are_written_as_numpy_does(tmp_path: Path, array: np.ndarray) -> None:
    write_npy(tmp_path / "a.npy", array)
    np.save(tmp_path / "b.npy", array)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
def test_a_full_disk_is_called_so(capsys, monkeypatch) -> None:
    monkeypatch.setattr("polyptych.cli.list.main", lambda _: write_npy(Path("/dev/full"), np.zeros(9999)))
    assert main(["list"]) == 2
    assert "got a system error (No space left on device)" in capsys.readouterr().err
    cloud = PointCloud(np.zeros((9999, 3), np.float32), np.zeros((9999, 3), np.uint8))
    with pytest.raises(OSError, match="No space left"):
        cloud.save("/dev/full")


@pytest.mark.parametrize(("stored", "listed", "found"), [
    (np.float32([655.35, 655, np.nan, 0]), (655.35,), [1, 0, 0, 0]),
    (np.float16([0.1, 0.2, 1e4]), (0.1,), [1, 0, 0]),
    (np.float64(np.float32([655.35, 655.34])), (655.35,), [1, 0]),
    (np.float64([655.35, 655.34]), (655.35,), [1, 0]),
    (np.float32([1e20, -9999.9, 1]), (1e20, -9999.9), [1, 1, 0]),
    (np.float16([np.inf, 1]), (1e20,), [1, 0]),
    (np.uint8([255, 0, 1]), (-1, 255.0, 256, 0.5), [1, 0, 0]),
    (np.int16([-1, 255]), (-1, 65535), [1, 0]),
    (np.int16([-1, 255]), (65535,), [1, 0]),
    (np.uint16([65535, 65279, 1]), (-1, -257), [1, 1, 0]),
    (np.uint8([255, 0, 156]), (-1, -300, 511, -100), [1, 0, 1]),
    (np.uint64([2**63, 1]), (2.0**63,), [1, 0]),
    (np.array([True, False]), (1,), [1, 0]),
    (np.float32([255, 254]), (255,), [1, 0]),
    (np.float32([np.nan, np.inf, -np.inf]), (float("nan"), float("-inf")), [1, 0, 1]),
    (np.uint16([65535, 1]), (float("inf"), float("nan"), 65535), [1, 0]),
    (np.float32([1, 2]), (), [0, 0]),
])
def test_values_are_met_in_the_type_of_the_data(stored: np.ndarray, listed: tuple, found: list[int]) -> None:
    assert is_any(stored, listed).tolist() == [bool(each) for each in found]


@pytest.mark.parametrize("normal", [(0, 0, -1), (0, -1, 0), (0.6, 0, -0.8), (0.7, -0.7, 0), (0.577, 0.577, -0.577)])
def test_normals_in_another_form(normal: tuple[float, ...]) -> None:
    vectors = np.float32(normal)[:, None, None].repeat(8, 1).repeat(8, 2)
    valid = np.ones((8, 8), bool)
    require_unit_vectors(vectors, valid, "a")
    require_unit_vectors(vectors * np.float32(0.93), valid, "a")  # averages
    with pytest.raises(InputError, match=r"\(n \+ 1\) / 2"):
        varied = np.concatenate([vectors, np.float32((0, -1, 0))[:, None, None].repeat(8, 1).repeat(8, 2)], 2)
        require_unit_vectors((varied + 1) / 2, np.ones((8, 16), bool), "a")
    with pytest.raises(InputError, match="normalize"):
        require_unit_vectors(vectors * 0.6, valid, "a")


def test_an_archive_that_is_none(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, VALUES)
    (tmp_path / "a.npz").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="an unreadable file"):
        read_array(tmp_path / "a.npz")
