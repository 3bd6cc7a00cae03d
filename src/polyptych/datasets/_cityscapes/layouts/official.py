"""The unpacked archives of the site: one folder for each package, split and city, 1024x2048."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image

from polyptych.data.files import file_names, id_of, is_visible, read_json
from polyptych.data.pictures import picture_size, read_gray
from polyptych.datasets._cityscapes.classes import LAST_ID, TABLES, VOID
from polyptych.datasets._cityscapes.layouts._base import CityscapesLayout
from polyptych.datasets._cityscapes.streets import CAMERA, FRAMES, SIZE, StreetScene
from polyptych.datasets._holdout import blocks
from polyptych.datasets._layouts import Files
from polyptych.errors import InputError

# folder and end of the file name of each kind
_KINDS = {
    "image": ("leftImg8bit", "_leftImg8bit.png"),
    "semseg": ("gtFine", "_gtFine_labelIds.png"),
    "disparity": ("disparity", "_disparity.png"),
    "camera": ("camera", "_camera.json"),
}
_FARTHEST = 1000.0  # meters; limit of the task; disparities below half a pixel are meaningless


class OfficialLayout(CityscapesLayout):
    """``{package}/{split}/{city}/{city}_{sequence}_{frame}_{package}``, for instance
    ``gtFine/val/munster/munster_000000_000019_gtFine_labelIds.png``. Frames are called
    ``munster_000000_000019``.

    Disparity is 16 bits: p = 0 is unknown, otherwise d = (p - 1) / 256 pixels **of the official width of 2048**,
    whatever the width of the file. Metric depth is baseline * fx / d with the baseline and focal length of every
    frame's own ``camera.json``.
    """

    looks_for = "leftImg8bit/ and gtFine/ (or disparity/)"
    counts = {"train": 2975, "val": 500, "test": 1525}  # noqa: RUF012
    note = ("1024x2048; the archives unpack side by side. The official test labels are dummies, so our test is the "
            "official val. Metric depth needs disparity/ and camera/")
    auto_order = 10
    tested_on = "official_val"
    semseg_note = "made from labelIds; the ids that the official evaluation ignores have no label"
    kinds = {"semseg": ("semseg",), "depth": ("disparity", "camera"), "inverse_depth": ("disparity",)}  # noqa: RUF012

    @classmethod
    def matches(cls, root: Path) -> bool:
        return (root / "leftImg8bit").is_dir() and ((root / "gtFine").is_dir() or (root / "disparity").is_dir())

    def find(self) -> Files:
        files: Files = {}
        self._splits: dict[str, list[str]] = {}
        for kind, (folder, ending) in _KINDS.items():
            files[kind] = {}
            for split in ("train", "val"):
                found = dict(_listed(self.root / folder / split, ending))
                files[kind] |= found
                if kind == "image":
                    self._splits[split] = sorted(found)
        return files

    def frames(self, part: str) -> list[str]:
        return self._splits["val" if part == "test" else part]

    def runs(self, frames: list[str]) -> Sequence[Sequence[str]]:
        """Cities, which the official split keeps together; a single city is cut into blocks of neighboring frames."""
        cities = [list(city) for _, city in itertools.groupby(frames, key=_city)]
        return cities if len(cities) > 1 else blocks(frames)

    def expected(self, frame: str, kind: str) -> Path:
        folder, ending = _KINDS[kind]
        split = "val" if frame in self._splits["val"] else "train"
        return self.root / folder / split / _city(frame) / f"{frame}{ending}"

    def size(self, frame: str) -> tuple[int, int]:
        return picture_size(self.path(frame, "image"))

    def semseg(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        path = self.path(frame, "semseg")
        ids = read_gray(path)
        known = (ids >= -1) & (ids <= LAST_ID) | (ids == 255)
        if ids.dtype.kind not in "biu" or not known.all():
            got = f"class id {ids[~known][0]:g}" if not known.all() else f"{ids.dtype} values"
            raise InputError(path, got, f"ids from -1 (or 255) to {LAST_ID}",
                             "use the files that end in _gtFine_labelIds.png")
        ids = TABLES[self.config.classes][ids.astype(np.uint8)]  # -1 becomes 255; a copy, so no id is mapped twice
        labeled = ids != VOID
        return np.where(labeled, ids, 0), labeled

    def depth(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        camera = _read_camera(self.path(frame, "camera"))
        disparity = (self._codes(frame) - 1) / 256
        # At or below zero, the pixel is unknown or infinitely far: no metric depth.
        nearest = camera.extrinsic.baseline * camera.intrinsic.fx
        valid = disparity >= nearest / _FARTHEST
        depth = np.where(valid, nearest / np.where(valid, disparity, 1), 0)
        return depth.astype(np.float32), valid

    def inverse_depth(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        codes = self._codes(frame)
        valid = codes > 0
        values = codes / 65535 if self.config.inverse_depth == "fraction" else np.maximum(codes - 1, 0) / 256
        return values.astype(np.float32), valid

    def _codes(self, frame: str) -> np.ndarray:
        """p of every pixel, float64 (h w)."""
        path = self.path(frame, "disparity")
        codes = read_gray(path)
        # Pillow gives 16-bit pictures as uint16 or, in older versions, as int32.
        if codes.dtype.kind not in "iu" or codes.dtype.itemsize == 1 or codes.min() < 0 or codes.max() > 65535:
            raise InputError(path, f"a picture of {codes.dtype} values", "16 bits per pixel",
                             "take the official file; 8 bits cannot hold the disparity")
        return codes.astype(np.float64)

    @classmethod
    def write_fixture(cls, root: Path) -> None:
        """Write a miniature; like the official one, its test split has dummy labels."""
        for split, frames in FRAMES.items():
            for frame in frames:
                scene = StreetScene(frame)
                ids = scene.ids if split != "test" else np.zeros(SIZE, np.uint8)
                for folder, _ in _KINDS.values():
                    (root / folder / split / _city(frame)).mkdir(parents=True, exist_ok=True)

                def place(package: str, ending: str, split: str = split, frame: str = frame) -> Path:
                    return root / package / split / _city(frame) / f"{frame}_{ending}"

                Image.fromarray(scene.image).save(place("leftImg8bit", "leftImg8bit.png"))
                Image.fromarray(ids).save(place("gtFine", "gtFine_labelIds.png"))
                Image.fromarray(ids.astype(np.uint16)).save(place("gtFine", "gtFine_instanceIds.png"))
                Image.fromarray(scene.codes).save(place("disparity", "disparity.png"))
                place("camera", "camera.json").write_text(json.dumps(CAMERA, indent=4), "utf-8")


class _Intrinsic(msgspec.Struct):
    fx: float


class _Extrinsic(msgspec.Struct):
    baseline: float


class _Camera(msgspec.Struct):
    """The needed part of ``camera.json``: ``fx`` in pixels of the official width, ``baseline`` in meters."""

    intrinsic: _Intrinsic
    extrinsic: _Extrinsic


def _read_camera(path: Path) -> _Camera:
    camera: _Camera = read_json(path, "a camera file (.json) with intrinsic.fx and extrinsic.baseline", _Camera)
    for name, value in (("intrinsic.fx", camera.intrinsic.fx), ("extrinsic.baseline", camera.extrinsic.baseline)):
        if not value > 0:
            raise InputError(path, f"{name} = {value:g}", "a positive number", "take the official file")
    return camera


def _listed(folder: Path, ending: str) -> Iterator[tuple[str, Path]]:
    """The frames of one package and split, from the folders of its cities."""
    for city in sorted(folder.iterdir()) if folder.is_dir() else ():
        for name in file_names(city) if is_visible(city.name) else ():
            if name.endswith(ending):
                yield id_of(name.removesuffix(ending), city / name), city / name


def _city(frame: str) -> str:
    return frame.split("_")[0]
