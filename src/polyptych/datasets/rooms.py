"""Endless furnished rooms with people, ray cast on the fly: exact labels for seven tasks, no download.

Every sample is determined bit for bit by the configuration, the split and the index alone. The same index at another
resolution is the same room; labels are exact at the centers of the pixels of the resolution asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import numpy as np
import torch

from polyptych.datasets._base import SPLITS, Dataset
from polyptych.datasets._rooms import classes as c
from polyptych.datasets._rooms.arrangement import Room, furnish
from polyptych.datasets._rooms.labels import LABELS
from polyptych.datasets._rooms.shading import photograph
from polyptych.datasets._rooms.view import observe
from polyptych.errors import InputError
from polyptych.types import LabelInfo, Sample, SampleInfo

ENDLESS = 1_000_000
"""Nominal length of the unlimited training set."""


class Rooms(Dataset):
    """Furnished rooms with people. See the module docstring for guarantees, :mod:`_rooms.labels` for the labels."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        size: tuple[int, int] = (128, 160)
        """Height and width of the images."""
        frames: int = 0
        """Number of training rooms (0: unlimited, a new room for every index)."""
        val_frames: int = 64
        """Number of validation rooms."""
        test_frames: int = 128
        """Number of test rooms."""
        max_people: int = 3
        """Maximum number of people in a room that has any."""
        empty: float = 0.1
        """Share of rooms without people."""
        clutter: float = 1.0
        """Amount of small objects on tables, shelves and the floor (0: none)."""

    config: Config

    labels: dict[str, LabelInfo] = {  # noqa: RUF012 (never modified; other datasets set their own)
        "semseg": LabelInfo(classes=c.CLASSES, colors=c.CLASS_COLORS),
        "depth": LabelInfo(unit="m", note="distance along the optical axis; no label on window glass"),
        "normals": LabelInfo(note="exact; no label on window glass"),
        "boundaries": LabelInfo(note="where the object changes, on the nearer side, about one pixel wide"),
        "saliency": LabelInfo(note="people; without any, the one most prominent object"),
        "parts": LabelInfo(classes=c.PARTS, colors=c.PART_COLORS),
        "keypoints": LabelInfo(classes=c.JOINTS, colors=c.JOINT_COLORS, mirror=c.JOINT_MIRROR, skeleton=c.SKELETON),
    }

    def __init__(self, config: Config, *, split: str, tasks: tuple[str, ...]):
        super().__init__(config, split=split, tasks=tasks)
        height, width = config.size
        if min(height, width) < 16:
            raise InputError("size of rooms", f"{height}x{width}", "at least 16 pixels in each direction",
                             "choose a larger size")
        for name in ("frames", "val_frames", "test_frames", "max_people", "clutter"):
            if getattr(config, name) < 0:
                raise InputError(f"{name} of rooms", str(getattr(config, name)), "a number that is not negative",
                                 "set it to 0 or more")
        if not 0 <= config.empty <= 1:
            raise InputError("empty of rooms", str(config.empty), "a share between 0 and 1", "set it to 0.1")
        changed = [f"{name}{getattr(config, name):g}" for name in ("max_people", "empty", "clutter")
                   if getattr(config, name) != getattr(type(config)(), name)]
        self.protocol = "-".join([f"rooms-1-{height}x{width}", *changed])

    def __len__(self) -> int:
        config = self.config
        return {"train": config.frames or ENDLESS, "val": config.val_frames, "test": config.test_frames}[self.split]

    def room(self, index: int) -> Room:
        """The room itself, independent of resolution; ``room(i).camera(size).intrinsics`` are fx, fy, cx, cy."""
        config = self.config
        return furnish(Random(self._seed(index)), max_people=config.max_people, empty=config.empty,
                       clutter=config.clutter)

    def read(self, index: int) -> Sample:
        room, size = self.room(index), self.config.size
        view = observe(room, size)
        target, valid = {}, {}
        for task in self.tasks:
            label, mask = LABELS[task](room, view)
            target[task], valid[task] = torch.from_numpy(label), torch.from_numpy(mask)
        image = torch.from_numpy(photograph(room, view, self._seed(index)))
        return Sample(image, target, valid, SampleInfo(f"{self.split}/{index:06d}", size, size))

    def _seed(self, index: int) -> int:
        """Seed of a room. Splits do not share rooms, because split and index are both hashed."""
        if not 0 <= index < len(self):
            raise IndexError(f"rooms has {len(self)} {self.split} rooms, asked for {index}")
        state = np.random.SeedSequence((SPLITS.index(self.split), index)).generate_state(2, np.uint64)
        return int(state[0]) << 64 | int(state[1])
