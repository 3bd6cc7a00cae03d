"""NYUv2+kpts of GradNorm: video frames of rooms with room-layout keypoints, depth and normals. Not public.

Source: Chen, Badrinarayanan, Lee and Rabinovich, ICML 2018, arXiv 1711.02257
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from polyptych.data.arrays import npy_shape, read_npy
from polyptych.data.files import files_by_stem, read_lines, require_files
from polyptych.data.pictures import picture_size, read_color, require_size
from polyptych.datasets._base import Dataset, EmptySplit
from polyptych.datasets._decoding import meters, picture_vectors, vectors
from polyptych.datasets._holdout import hold_out
from polyptych.datasets._nyuv2_keypoints.labels import peaks, points
from polyptych.datasets._nyuv2_keypoints.types import Types, read_types
from polyptych.errors import InputError
from polyptych.types import LabelInfo, Sample, SampleInfo

Label = tuple[Tensor, Tensor]

_SUFFIXES = {"image": (".jpg", ".png"), "keypoints": (".npy",), "depth": (".npy",), "normals": (".npy", ".png")}


class NYUv2Keypoints(Dataset):
    """Video frames of rooms with keypoints. The data of the paper was never released, so bring your own in this form:

    ``{image,keypoints,depth,normals}/SCENE/FRAME.*`` with the lists ``train.txt`` and ``test.txt`` of ``SCENE/FRAME``,
    one per line; no scene may be in both (the paper splits 90 / 10 by scene). ``val`` is made of whole scenes of
    ``train.txt``. Images are .jpg or .png; depth .npy (h w), meters, 0 where unknown; normals .npy (h w 3) or .png
    (v = 127.5 (n + 1)), x right, y down, z forward, 0 where unknown.

    Keypoints are .npy, either (k 3) with x, y in pixels of the image and visible (0 or 1), or heat maps (k h w) from 0
    to 1, whose peaks are taken. ``keypoints.json`` names the k types, the pairs that a horizontal flip swaps, and those
    that a picture joins: ``{"types": [...], "mirror": [[0, 1]], "skeleton": [[0, 2]]}``. Without it there are 48 types
    and no pairs: then train without mirroring.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        root: Path = Path("data/nyuv2_keypoints")
        """Folder of the dataset."""
        layout: Literal["auto", "points", "heat_maps"] = "auto"
        """How keypoints are stored: as coordinates, or as heat maps (as exact as their cells); auto checks one
        file."""
        validation: float = 0.1
        """Share of the training frames, in whole scenes, that is held out as val (0: train on all of them)."""

    config: Config

    def __init__(self, config: Config, *, split: str, tasks: tuple[str, ...]):
        self.root = Path(config.root)
        if not 0 <= config.validation < 1:
            raise InputError("validation of nyuv2_keypoints", str(config.validation), "a share from 0 to below 1",
                             "0.1 sets a tenth of the training images aside")
        if not self.root.is_dir():
            raise InputError(f"root of nyuv2_keypoints ({self.root})", "no such folder", "the folder of the dataset",
                             "check the path")
        self.types = read_types(self.root / "keypoints.json")
        self.labels = _labels(self.types)
        super().__init__(config, split=split, tasks=tasks)
        self.frames = self._split_frames()
        self.files = {kind: self._find(kind) for kind in ("image", *tasks)}
        height, width = picture_size(self.files["image"][self.frames[0]])
        layout = self._layout()
        self.protocol = f"nyuv2_keypoints-{len(self.types.types)}-{height}x{width}-{layout}"
        read_points = points if layout == "points" else peaks
        self._readers: dict[str, Callable[[Path, tuple[int, int]], Label]] = {
            "keypoints": partial(_keypoints, read=read_points, count=len(self.types.types)), "depth": _depth,
            "normals": _normals}

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, index: int) -> Sample:
        frame = self.frames[index]
        image = read_color(self.files["image"][frame])
        size = (int(image.shape[1]), int(image.shape[2]))
        target, valid = {}, {}
        for task in self.tasks:
            path = self.files[task][frame]
            target[task], valid[task] = self._readers[task](path, size)
            require_size((int(valid[task].shape[0]), int(valid[task].shape[1])), size, path, self.files["image"][frame])
        return Sample(image, target, valid, SampleInfo(frame, size, size))

    def _split_frames(self) -> list[str]:
        lists = {part: read_lines(self.root / f"{part}.txt") for part in ("train", "test")}
        for part, frames in lists.items():
            for frame in frames:
                if frame.count("/") != 1 or ".." in frame:
                    raise InputError(self.root / f"{part}.txt", f"'{frame}'", "SCENE/FRAME on every line",
                                     "write the line that way")
        both = {_scene(frame) for frame in lists["train"]} & {_scene(frame) for frame in lists["test"]}
        if both:
            raise InputError(self.root / "test.txt", f"scene '{min(both)}', which is in train.txt too",
                             "scenes that are not trained on", "move all of its frames into one list")
        frames = lists["test" if self.split == "test" else "train"]
        if self.split != "test":
            runs = [list(run) for _, run in itertools.groupby(sorted(frames, key=_scene), _scene)]
            kept = hold_out(runs, self.config.validation)
            frames = [frame for frame in frames if (frame in kept) == (self.split == "val")]
        if not frames:
            kind = InputError if self.split == "train" else EmptySplit
            raise kind(f"{self.split} split of {self.root}", "no frames",
                       "at least one (val needs two training images and a validation share above 0)",
                       "check the lists")
        return frames

    def _find(self, kind: str) -> dict[str, Path]:
        scenes = dict.fromkeys(map(_scene, self.frames))
        found = {f"{scene}/{stem}": path for scene in scenes
                 for stem, path in files_by_stem(self.root / kind / scene, _SUFFIXES[kind]).items()}
        require_files(self.root / kind, self.frames, found,
                      lambda frame: self.root / kind / f"{frame}{_SUFFIXES[kind][0]}")
        return found

    def _layout(self) -> str:
        """How keypoints are stored. Determined even if they are not requested, because the protocol must not depend on
        the tasks."""
        path = self.root / "keypoints" / f"{self.frames[0]}.npy"
        if self.config.layout != "auto" or not path.is_file():
            return self.config.layout
        return "points" if len(npy_shape(path)) == 2 else "heat_maps"


def _scene(frame: str) -> str:
    return frame.partition("/")[0]


def _labels(types: Types) -> dict[str, LabelInfo]:
    note = "" if types.mirror else "no pairs of types are known that a horizontal flip swaps: train without mirroring"
    return {"keypoints": LabelInfo(classes=types.types, mirror=types.mirror, skeleton=types.skeleton, note=note),
            "depth": LabelInfo(unit="m"), "normals": LabelInfo()}


def _keypoints(path: Path, size: tuple[int, int], *, read: Callable[..., np.ndarray], count: int) -> Label:
    found = torch.from_numpy(read(read_npy(path), path, count, size))
    return found[None], torch.ones(size, dtype=torch.bool)


def _depth(path: Path, size: tuple[int, int]) -> Label:
    depth = torch.from_numpy(np.asarray(meters(read_npy(path), path), np.float32))
    valid = depth > 0  # False for NaN
    return torch.where(valid, depth, 0), valid


def _normals(path: Path, size: tuple[int, int]) -> Label:
    normals = vectors(read_npy(path), path) if path.suffix == ".npy" else picture_vectors(read_color(path))
    length = normals.square().sum(0).sqrt_()
    valid = length > 0.1  # an 8-bit zero vector is not exactly zero
    return normals * (valid / length.clamp(min=0.1)), valid
