"""How a validation set is carved out of official training images: deterministic, and in runs that belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from polyptych.datasets._base import EmptySplit
from polyptych.errors import InputError

BLOCK = 40
"""Length of a run where nothing but the order of the frames tells which of them are neighbors."""


def hold_out(runs: Sequence[Sequence[str]], share: float) -> set[str]:
    """The training frames that make up ``val``: whole runs, because frames of one run show the same place.

    Going through the runs in order from the second on, a run is held out when that brings the share held out so
    far closer to ``share``, so that the held out runs are spread over the whole collection. Nothing random is
    involved. Where no run fits, which happens in small subsets, the last one is held out; where all frames are one
    run, its last frames (at least one). Something is always left: a single frame is never held out.
    """
    total = sum(map(len, runs))
    if not share > 0 or total < 2:
        return set()
    if len(runs) == 1:
        return set(runs[0][-min(math.ceil(share * total), total - 1):])
    taken: list[str] = []
    seen = len(runs[0])
    for run in runs[1:]:
        seen += len(run)
        # Half a run: taking it is closer to the share than leaving it exactly where its middle lies below the target.
        if len(taken) + len(run) / 2 < share * seen:
            taken += run
    return set(taken or runs[-1])


def blocks(frames: Sequence[str]) -> list[Sequence[str]]:
    """The frames in runs of :data:`BLOCK`."""
    return [frames[start:start + BLOCK] for start in range(0, len(frames), BLOCK)]


def numbered_runs(frames: Sequence[str]) -> Sequence[Sequence[str]]:
    """Runs of consecutive numbers, for frames that are named by their place in a recording; other names are cut into
    :func:`blocks`, longer than most such runs, so that few places are cut in two."""
    if not all(frame.isdecimal() for frame in frames):
        return blocks(frames)
    runs: list[list[str]] = []
    for frame in frames:
        if runs and int(frame) == int(runs[-1][-1]) + 1:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    return runs


def checked_share(share: float, dataset: str) -> None:
    """
    Raises:
        InputError: ``--dataset.validation`` is no share.
    """
    if not 0 <= share < 1:
        raise InputError(f"validation of {dataset}", str(share), "a share from 0 to below 1",
                         "0.1 sets about a tenth of the training images aside")


def part_of(frames: list[str], runs: Sequence[Sequence[str]], share: float, split: str, root: Path) -> list[str]:
    """The frames of our ``split``, in their order: all of them for ``test``; what is or is not held out for the others.

    Args:
        frames: of the official part that the split is taken from.
        runs: the same frames in groups that show the same place.

    Raises:
        EmptySplit: there are none (of ``train``, an InputError).
        InputError: a list names one twice, which would count twice.
    """
    if len(set(frames)) < len(frames):
        twice = next(frame for place, frame in enumerate(frames) if frame in frames[:place])
        raise InputError(f"{split} split of {root}", f"the id '{twice}' twice", "every id once",
                         "remove it from the dataset's list of images")
    if split != "test":
        kept = hold_out(runs, share)
        frames = [frame for frame in frames if (frame in kept) == (split == "val")]
    if not frames:
        kind = InputError if split == "train" else EmptySplit
        raise kind(f"{split} split of {root}", "no frames",
                   "at least one (val needs two training images and a validation share above 0)",
                   "check that the dataset's folders and lists of images are complete")
    return frames
