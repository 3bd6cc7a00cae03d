"""One run of a comparison, in a process of its own: ``python -m polyptych.comparison.worker`` with a request on stdin.

A process per run gives all memory back, and a run that crashes takes nothing with it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from polyptych.errors import InputError
from polyptych.folder_lock import hold
from polyptych.record import decode, encode
from polyptych.reports.examples import write_examples
from polyptych.reports.page import write_report
from polyptych.run import Run
from polyptych.training import train

LOG = "worker.log"
PATIENCE = 20.0  # seconds that a killed process may take to let go of its folder


@dataclass(frozen=True)
class Request:
    """What a worker is to do, as plain data that crosses processes and machines.

    Attributes:
        folder: of the run.
        run: the encoded :class:`polyptych.run.Run`.
        arguments: the command line that asked for the comparison, for the run's record.
        parent: the worker dies with this process; 0 for none.
    """

    folder: str
    run: dict[str, Any]
    arguments: tuple[str, ...] = ()
    parent: int = 0

    @staticmethod
    def of(run: Run, folder: Path, parent: int = 0, arguments: Sequence[str] | None = None) -> Request:
        arguments = sys.argv[1:] if arguments is None else arguments
        return Request(str(folder.resolve()), encode(run), tuple(arguments), parent)

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def work(request: Request) -> None:
    """Train, test and report the run, from its last checkpoint where it has one. What is done is not done again: a
    run that was tested before it was stopped gets the rest of its report, and the test split is not touched again.
    ``sys.argv`` becomes the command that asked for the comparison, which is what the run records.

    Raises:
        InputError: another process trains in the folder, or as :func:`polyptych.training.train`.
    """
    folder = Path(request.folder)
    folder.mkdir(parents=True, exist_ok=True)
    sys.argv[1:] = request.arguments
    with hold(folder, PATIENCE):
        if (folder / "report.html").exists():
            return
        if (folder / "evaluation" / "test.json").exists():
            write_examples(folder)
            write_report(folder)
        else:
            train(decode(Run, request.run, "the planned run"), folder, resume=True)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (Linux; elsewhere it goes on and holds its folder)."""
    if not sys.platform.startswith("linux"):
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(1)


def main() -> int:
    # The lines of stdin are one JSON object; nothing in it is executed.
    data = json.loads(sys.stdin.read())
    request = Request(data["folder"], data["run"], tuple(data["arguments"]), data["parent"])
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
