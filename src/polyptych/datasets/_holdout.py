"""How a validation set is carved out of official training images: deterministic, and in runs that belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
        if len(taken) + len(run) / 2 < share * seen:
            taken += run
    return set(taken or runs[-1])


def blocks(frames: Sequence[str]) -> list[Sequence[str]]:
    """The frames in runs of :data:`BLOCK`."""
    return [frames[start:start + BLOCK] for start in range(0, len(frames), BLOCK)]
