"""How a validation set is carved out of official training images: deterministically, and in whole runs of related
frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from polyptych.datasets._base import EmptySplit
from polyptych.errors import InputError

BLOCK = 40
"""Length of a run if only the order of the frames tells which of them are neighbors."""


def hold_out(runs: Sequence[Sequence[str]], share: float) -> set[str]:
    """The training frames that make up ``val``: whole runs, because frames of one run show the same place.

    The runs are visited in order, starting with the second. A run is held out if that brings the share so far closer to
    ``share``; this spreads the held-out runs over the whole collection, without randomness. If no run fits, as in small
    subsets, the last one is held out; if all frames are one run, its last frames are (at least one). Some frames always
    remain: a single frame is never held out.
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
        # Half a run: taking a run is better than leaving it exactly if its middle is below the target.
        if len(taken) + len(run) / 2 < share * seen:
            taken += run
    return set(taken or runs[-1])


def blocks(frames: Sequence[str]) -> list[Sequence[str]]:
    """The frames in runs of :data:`BLOCK`."""
    return [frames[start:start + BLOCK] for start in range(0, len(frames), BLOCK)]


def numbered_runs(frames: Sequence[str]) -> Sequence[Sequence[str]]:
    """Runs of consecutive numbers, for frames that are named by their position in a recording. Other names are cut into
    :func:`blocks`, which are longer than most such runs, so that few scenes are cut in two."""
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
    """Check the share of training images that is held out.

    Raises:
        InputError: ``--dataset.validation`` is not a share.
    """
    if not 0 <= share < 1:
        raise InputError(f"validation of {dataset}", str(share), "a share from 0 to below 1",
                         "0.1 sets about a tenth of the training images aside")


def part_of(frames: list[str], runs: Sequence[Sequence[str]], share: float, split: str, root: Path) -> list[str]:
    """The frames of our ``split``, in order: all of them for ``test``, the held-out ones for ``val``, the others for
    ``train``.

    Args:
        frames: frames of the official split that ours is taken from.
        runs: the same frames in groups that show the same place.

    Raises:
        EmptySplit: there are none (for ``train``, an InputError).
        InputError: a list names a frame twice, so that it would count twice.
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
