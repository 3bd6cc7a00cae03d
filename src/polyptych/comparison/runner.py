"""Training many runs, on every device of this machine or on a Ray cluster; finished work is not repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TextIO

from polyptych.comparison import on_local, on_ray
from polyptych.comparison.board import Board
from polyptych.comparison.grid import Entry

Where = Literal["local", "ray"]


def run_all(entries: Sequence[Entry], *, on: Where = "local", stream: TextIO | None = None) -> dict[str, str]:
    """Train, test, and report (or record) every unfinished run, each in its own process.

    An interrupted run continues from its last checkpoint. A run that fails does not stop the others.

    Args:
        entries: the runs; the caller chooses folders, seeds, and labels, which must differ.
        on: ``local``, one process per device; ``ray``, one Ray task per run.
        stream: where the progress board goes; standard error by default.

    Returns:
        Errors by label of the runs that failed; the same call tries them again.

    Raises:
        InputError: Ray was asked for and is not installed.
        Interrupted: Ctrl-C or SIGTERM; every run has saved its state, and the same call continues.
    """
    if not entries:
        return {}
    if on == "ray":
        on_ray.require_ray()
        if not all(entry.finished for entry in entries):
            on_ray.connect()
    places = on_local.devices(entries[0].method.run)
    with Board(entries, at_once=len(places), stream=stream) as board:
        if on == "ray":
            on_ray.run_all(board)
        else:
            on_local.run_all(board, places)
    return {run.entry.label: run.error for run in board.runs if run.state == "failed"}
