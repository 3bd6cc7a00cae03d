"""Cityscapes as its site hands it out: one folder per package, split and city, 1024x2048."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from polyptych.data._files import picture_size, read_color, read_gray, reading
from polyptych.datasets._cityscapes.classes import LAST_ID, TABLES, VOID
from polyptych.datasets._cityscapes.layout import Files, Layout
from polyptych.datasets._holdout import blocks
from polyptych.errors import InputError

# folder and end of the file name of each kind
_KINDS = {
    "image": ("leftImg8bit", "_leftImg8bit.png"),
    "semseg": ("gtFine", "_gtFine_labelIds.png"),
    "disparity": ("disparity", "_disparity.png"),
    "camera": ("camera", "_camera.json"),
}
_FARTHEST = 1000.0  # meters; the range of the task, and disparities of less than half a pixel tell nothing


class OfficialLayout(Layout):
    """``{package}/{split}/{city}/{city}_{sequence}_{frame}_{package}``, for instance
    ``gtFine/val/munster/munster_000000_000019_gtFine_labelIds.png``. Frames are called
    ``munster_000000_000019``.

    Disparity is 16 bits: p = 0 is unknown, otherwise d = (p - 1) / 256 pixels **of the official width of 2048**,
    whatever the width of the file. Metric depth is baseline * fx / d with the baseline and focal length of every
    frame's own ``camera.json``.
    """

    looks_for = "leftImg8bit/ and gtFine/"
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
                found = {path.name.removesuffix(ending): path
                         for path in sorted((self.root / folder / split).glob(f"*/*{ending}"))}
                files[kind] |= found
                if kind == "image":
                    self._splits[split] = list(found)
        return files

    def frames(self, official: str) -> list[str]:
        return self._splits[official]

    def runs(self, frames: list[str]) -> Sequence[Sequence[str]]:
        """Cities, as the official split has it; one city alone is cut into blocks of neighboring frames."""
        cities = [list(city) for _, city in itertools.groupby(frames, key=_city)]
        return cities if len(cities) > 1 else blocks(frames)

    def expected(self, frame: str, kind: str) -> Path:
        folder, ending = _KINDS[kind]
        split = "val" if frame in self._splits["val"] else "train"
        return self.root / folder / split / _city(frame) / f"{frame}{ending}"

    def size(self, frame: str) -> tuple[int, int]:
        return picture_size(self.path(frame, "image"))

    def image(self, frame: str) -> UInt8[Tensor, "3 h w"]:
        return read_color(self.path(frame, "image"))

    def semseg(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        path = self.path(frame, "semseg")
        ids = read_gray(path)
        known = (ids >= -1) & (ids <= LAST_ID) | (ids == 255)
        if ids.dtype.kind not in "iu" or not known.all():
            got = f"class id {ids[~known][0]:g}" if not known.all() else f"{ids.dtype} values"
            raise InputError(path, got, f"ids from -1 (or 255) to {LAST_ID}",
                             "use the files that end in _gtFine_labelIds.png")
        ids = TABLES[self.classes][ids.astype(np.uint8)]  # -1 becomes 255; a copy, so no id is mapped twice
        labeled = ids != VOID
        return np.where(labeled, ids, 0), labeled

    def depth(self, frame: str) -> tuple[np.ndarray, np.ndarray]:
        camera = _read_camera(self.path(frame, "camera"))
        disparity = (self._codes(frame) - 1) / 256
        # At or below zero the pixel is unknown or infinitely far, which has no metric depth.
        nearest = camera.extrinsic.baseline * camera.intrinsic.fx
        valid = disparity >= nearest / _FARTHEST
        depth = np.where(valid, nearest / np.where(valid, disparity, 1), 0)
        return depth.astype(np.float32), valid

    def inverse_depth(self, frame: str, unit: str) -> tuple[np.ndarray, np.ndarray]:
        codes = self._codes(frame)
        valid = codes > 0
        values = codes / 65535 if unit == "fraction" else np.maximum(codes - 1, 0) / 256
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


class _Intrinsic(msgspec.Struct):
    fx: float


class _Extrinsic(msgspec.Struct):
    baseline: float


class _Camera(msgspec.Struct):
    """What is needed of ``camera.json``: ``fx`` in pixels of the official width, ``baseline`` in meters."""

    intrinsic: _Intrinsic
    extrinsic: _Extrinsic


def _read_camera(path: Path) -> _Camera:
    with reading(path, "a camera file (.json) with intrinsic.fx and extrinsic.baseline"):
        camera = msgspec.json.decode(path.read_bytes(), type=_Camera)
    for name, value in (("intrinsic.fx", camera.intrinsic.fx), ("extrinsic.baseline", camera.extrinsic.baseline)):
        if not value > 0:
            raise InputError(path, f"{name} = {value:g}", "a positive number", "take the official file")
    return camera


def _city(frame: str) -> str:
    return frame.split("_")[0]
