"""One run of a comparison, in its own process: ``python -m polyptych.comparison.worker`` with a request on stdin.

A process per run returns all memory, and a run that crashes does not affect the others.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from polyptych.comparison.grid import Entry
from polyptych.comparison.records import Record
from polyptych.errors import InputError
from polyptych.folder_lock import hold
from polyptych.record import decode, encode
from polyptych.run import Run
from polyptych.training import NOT_FINITE, measure_splits, train

LOG = "worker.log"
PATIENCE = 20.0  # seconds that a killed process may take to release its folder


@dataclass(frozen=True)
class Request:
    """The task of a worker, as plain data that crosses processes and machines.

    Attributes:
        folder: folder of the run.
        run: the encoded :class:`polyptych.run.Run`.
        arguments: the command line that asked for the comparison, for the run's record.
        parent: the worker dies with this process; 0 for none.
        record, trial, keep, network, balancer: as in :class:`polyptych.comparison.grid.Entry` and its method.
    """

    folder: str
    run: dict[str, Any]
    arguments: tuple[str, ...] = ()
    parent: int = 0
    record: str | None = None
    trial: bool = False
    keep: bool = True
    network: str = ""
    balancer: str = ""

    @staticmethod
    def of(entry: Entry, parent: int = 0) -> Request:
        return Request(str(entry.folder.resolve()), encode(entry.run), tuple(sys.argv[1:]), parent,
                       str(entry.record.resolve()) if entry.record else None, entry.trial, entry.keep,
                       entry.method.network, entry.method.balancer)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def work(request: Request) -> None:
    """Train, test, and report the run, from its last checkpoint if it has one; a run with a record is recorded instead
    of reported. Nothing is repeated: a run that was tested before it was stopped gets the rest of its report, and the
    test split is not touched again. ``sys.argv`` becomes the command that asked for the comparison, which is what the
    run records.

    Raises:
        InputError: another process trains in the folder, or as :func:`polyptych.training.train`.
    """
    folder = Path(request.folder)
    folder.mkdir(parents=True, exist_ok=True)
    sys.argv[1:] = request.arguments
    run = decode(Run, request.run, "the planned run")
    tested = folder / "evaluation" / "test.json"
    with hold(folder, PATIENCE):
        if request.record is not None:
            _record(request, run, folder, Path(request.record))
        elif not tested.exists():
            train(run, folder, resume=True)
        elif not (folder / "report.html").exists():
            from polyptych.prediction.examples import write_examples
            from polyptych.reports.page import write_report

            write_examples(folder)
            write_report(folder)


def _record(request: Request, run: Run, folder: Path, path: Path) -> None:
    """Write the record, and keep little else of the folder."""
    if path.exists():
        return
    error = ""
    if not (folder / "evaluation" / "test.json").exists():
        try:
            train(run, folder, resume=True, end=_untested if request.trial else _tested)
        except InputError as failure:
            if not (request.trial and failure.got == NOT_FINITE):
                raise
            error = f"{failure.got} at {failure.where}"  # that these settings do not work is the result of the trial
    Record.of_folder(folder, request.network, request.balancer, error).write(path)
    if not request.keep:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _untested(folder: Path, say: Callable[[object], None]) -> Path:
    return folder


def _tested(folder: Path, say: Callable[[object], None]) -> Path:
    measure_splits(folder, say)
    return folder


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (Linux; elsewhere it continues and keeps its folder
    locked)."""
    if not sys.platform.startswith("linux"):
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def main() -> int:
    # The lines of stdin are one JSON object; nothing in it is executed.
    data = json.loads(sys.stdin.read())
    request = Request(**{**data, "arguments": tuple(data["arguments"])})
    if request.parent:
        die_with(request.parent)
    try:
        work(request)
    except InputError as error:
        print(f"polyptych: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"polyptych: {error or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
