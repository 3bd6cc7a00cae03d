"""How a validation set is carved out of the official training images."""

from __future__ import annotations

import math
from collections.abc import Sequence

_BLOCK = 40  # frames; longer than any official run, so that few rooms are cut in two


def held_out(frames: Sequence[str], share: float) -> set[str]:
    """The training frames that make up ``val``: whole runs, because neighboring frames show the same room.

    A run is a maximal sequence of consecutive official numbers; the official split keeps rooms together, so a
    gap (where test images were) ends a room. Names that are not official numbers are cut into blocks of 40
    instead. Going through the runs in order, a run is held out when that brings the share held out so far
    closer to ``share``: the runs end up spread over the whole collection. Nothing random is involved.

    A small subset may have no run that fits; then its last run is held out, or, if all is one run, its last
    frames (at least one). A single frame is never held out.
    """
    runs = _runs(frames)
    taken: list[str] = []
    seen = 0
    for run in runs:
        seen += len(run)
        if len(taken) + len(run) / 2 < share * seen:
            taken += run
    if not taken and share > 0 and len(frames) > 1:
        taken = runs[-1] if len(runs) > 1 else runs[0][-min(math.ceil(share * len(frames)), len(frames) - 1):]
    return set(taken)


def _runs(frames: Sequence[str]) -> list[list[str]]:
    if not all(frame.isdigit() for frame in frames):
        return [list(frames[start:start + _BLOCK]) for start in range(0, len(frames), _BLOCK)]
    runs: list[list[str]] = []
    for frame in frames:
        if runs and int(frame) == int(runs[-1][-1]) + 1:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    return runs
