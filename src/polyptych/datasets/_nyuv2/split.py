"""How a validation set is carved out of the official training images."""

from __future__ import annotations

from collections.abc import Sequence

from polyptych.datasets._holdout import blocks, hold_out


def held_out(frames: Sequence[str], share: float) -> set[str]:
    """The training frames that make up ``val``: whole runs, as :func:`polyptych.datasets._holdout.hold_out`
    chooses them.

    A run is a maximal sequence of consecutive official numbers, because neighboring frames show the same room. The
    official split keeps rooms together, so a gap (where test images were) ends a room. Names that are not official
    numbers are cut into blocks instead, longer than any official run, so that few rooms are cut in two.
    """
    return hold_out(_runs(frames), share)


def _runs(frames: Sequence[str]) -> Sequence[Sequence[str]]:
    if not all(frame.isdecimal() for frame in frames):
        return blocks(frames)
    runs: list[list[str]] = []
    for frame in frames:
        if runs and int(frame) == int(runs[-1][-1]) + 1:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    return runs
