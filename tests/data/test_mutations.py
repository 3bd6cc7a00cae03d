"""Every reader with changed, cut and grown files: what comes is numbers or one line, soon, and within memory."""

from __future__ import annotations

import faulthandler
import json
import resource
import signal
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from polyptych.data.arrays import read_array
from polyptych.data.files import read_json, read_lines
from polyptych.data.pictures import picture_size, read_rgb, read_stored
from polyptych.datasets._folder.fixture import LAYOUTS
from polyptych.datasets._folder.objects import ImageClasses, read_coco
from polyptych.datasets._toml import read_toml
from polyptych.errors import InputError

SECONDS = 20
MEMORY = 6 << 30  # beyond what torch has reserved by then; no reader may take it for a file of kilobytes

IDS = (np.arange(12 * 16).reshape(12, 16) % 7).astype(np.uint8)
COLORS = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)


def _cell() -> dict[str, Any]:
    cell = np.empty((1, 2), object)
    cell[0] = [{"Boundaries": IDS, "name": "x"}, np.float32(IDS)]
    return {"map": IDS, "cell": cell}


def _h5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("map", data=np.float32(IDS), chunks=(4, 4), compression="gzip")
        file["group/other"] = IDS
        file["link"] = h5py.SoftLink("/group/other")


def _exif(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLORS).save(path, exif=exif)


def _numbers(path: Path) -> None:
    read_array(path, "map" if path.suffix in (".npz", ".mat", ".h5") else "")


def _picture(path: Path) -> None:
    found: list[InputError] = []
    for read in (read_rgb, read_stored, picture_size):
        try:
            read(path)
        except InputError as error:
            found.append(error)
    if found:
        raise found[0]


def _table(path: Path) -> None:
    ImageClasses(classes=("sunny", "rainy"), table=path.name).open(path.parent, "toml")


KINDS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], Any]]] = {
    "a.png": (lambda path: Image.fromarray(IDS).save(path), _picture),
    "color.png": (_exif, _picture),
    "a.jpg": (_exif, _picture),
    "a.tif": (lambda path: Image.fromarray(IDS).save(path, compression="tiff_deflate"), _picture),
    "a.webp": (lambda path: Image.fromarray(COLORS).save(path, lossless=True), _picture),
    "a.bmp": (lambda path: Image.fromarray(IDS).save(path), _picture),
    "a.gif": (lambda path: Image.fromarray(IDS).save(path), _picture),
    "a.npy": (lambda path: np.save(path, np.float32(IDS)), _numbers),
    "a.npz": (lambda path: np.savez_compressed(path, map=IDS), _numbers),
    "a.mat": (lambda path: savemat(path, _cell(), do_compression=True), _numbers),
    "plain.mat": (lambda path: savemat(path, _cell()), _numbers),
    "old.mat": (lambda path: savemat(path, {"map": IDS}, format="4"), _numbers),
    "a.h5": (_h5, _numbers),
    "a.toml": (lambda path: path.write_text((_folder(path) / "dataset.toml").read_text()),
               lambda path: read_toml(path, "it")),
    "a.json": (lambda path: path.write_text((_folder(path) / "persons.json").read_text()), read_coco),
    "b.json": (lambda path: path.write_text(json.dumps({"a": [1, 2.5, "\u00e9", None]})), lambda p: read_json(p, "it")),
    "a.csv": (lambda path: path.write_text("a,sunny\nb,rainy\n"), _table),
    "a.txt": (lambda path: path.write_text("0001\nday/2\n# note\n\u00e9\n", encoding="utf-16"), read_lines),
}


def _folder(path: Path) -> Path:
    folder = path.with_suffix(".folder")
    LAYOUTS["toml"](folder)
    return folder


def mutated(content: bytes, random: np.random.Generator) -> bytes:
    """One to four bytes changed, a part left out, doubled, or replaced by what is large or special."""
    content = bytearray(content)
    for _ in range(int(random.integers(1, 5))):
        place = int(random.integers(0, len(content)))
        length = int(random.integers(1, 9))
        how = int(random.integers(0, 8))
        if how < 4:
            content[place] = int(random.integers(0, 256))
        elif how == 4:
            del content[place:]
        elif how == 5:
            del content[place:place + length]
        elif how == 6:
            content[place:place] = content[place:place + length]
        else:
            content[place:place + length] = bytes([(0, 255, 127, 128)[int(random.integers(0, 4))]]) * length
        if not content:
            break
    return bytes(content)


@contextmanager
def bounded():
    """A traceback of where it hangs, instead of a test that hangs; and an error instead of all memory."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))

    def late(*_: object) -> None:
        raise TimeoutError

    previous = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    faulthandler.enable()
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("count", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_any_change_is_read_or_refused_in_one_line(tmp_path: Path, name: str, count: int) -> None:
    write, read = KINDS[name]
    path = tmp_path / name
    write(path)
    read(path)
    good = path.read_bytes()
    random = np.random.default_rng(count)
    for number in range(count):
        path.write_bytes(mutated(good, random))
        try:
            with bounded():
                read(path)
        except InputError as error:
            said = str(error)
            assert name in said and "\n" not in said, said
            assert "TimeoutError" not in said and "TypeCheckError" not in said, (number, said)
