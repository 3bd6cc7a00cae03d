"""The runs of a comparison on this machine: one process at a time on every device."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch

from polyptych.comparison.board import LOOK_EVERY, Board
from polyptych.comparison.progress import Progress
from polyptych.comparison.worker import LOG, Request
from polyptych.run import Run
from polyptych.training import Interrupted

GRACE = 60.0  # seconds that a worker has to save its state when it is asked to stop


@dataclass(frozen=True)
class Device:
    """Where one worker computes: its value of CUDA_VISIBLE_DEVICES, or None to keep the current one."""

    visible: str | None = None


def devices(run: Run) -> list[Device]:
    """Every CUDA device if the run accepts any (auto, cuda); otherwise the one that it names."""
    if run.execution.device not in ("auto", "cuda") or torch.cuda.device_count() < 2:
        return [Device()]
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return [Device(name) for name in visible or map(str, range(torch.cuda.device_count()))]


def run_all(board: Board, places: list[Device]) -> None:
    """Run everything that is waiting on the board. The board shows why a run failed; the others continue.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the active runs have saved their state.
    """
    waiting = [run for run in board.runs if run.state == "waiting"]
    going: dict[Device, _Going] = {}
    try:
        with _stop_on_termination():
            while waiting or going:
                for place in places:
                    if place in going and (code := going[place].process.poll()) is not None:
                        going.pop(place).end(code)
                    if place not in going and waiting:
                        going[place] = _Going.start(waiting.pop(0), place)
                board.refresh()
                time.sleep(LOOK_EVERY)
    except KeyboardInterrupt:
        for running in going.values():
            running.stop()
        raise Interrupted("stopped; everything is saved, the same command continues") from None


@dataclass
class _Going:
    progress: Progress
    process: subprocess.Popen[str]
    log_start: int

    @staticmethod
    def start(progress: Progress, place: Device) -> _Going:
        entry = progress.entry
        entry.folder.mkdir(parents=True, exist_ok=True)
        environment = dict(os.environ)
        if place.visible is not None:
            environment["CUDA_VISIBLE_DEVICES"] = place.visible
        with (entry.folder / LOG).open("ab") as log:
            log_start = log.tell()
            process = subprocess.Popen([sys.executable, "-m", "polyptych.comparison.worker"], env=environment,
                                       stdin=subprocess.PIPE, stdout=log, stderr=log, text=True)
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:  # it has ended already; its exit code shows why
            process.stdin.write(Request.of(entry, parent=os.getpid()).to_json())
        progress.state = "training"
        return _Going(progress, process, log_start)

    def end(self, code: int) -> None:
        self.progress.look()
        if code == 0 and self.progress.entry.finished:
            self.progress.state = "finished"
        else:
            self.progress.state, self.progress.error = "failed", self._reason(code)

    def _reason(self, code: int) -> str:
        """The last line that the worker wrote, which is its error, or the signal that ended it."""
        path = self.progress.entry.folder / LOG
        if code < 0:
            return f"ended by {signal.Signals(-code).name}; see {path}"
        with path.open("rb") as file:
            file.seek(self.log_start)
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].removeprefix("polyptych: ") if lines else f"exit code {code}; see {path}"

    def stop(self) -> None:
        """Let the worker save its state: it treats SIGTERM like Ctrl-C."""
        self.process.terminate()
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()


@contextlib.contextmanager
def _stop_on_termination() -> Iterator[None]:
    """Make SIGTERM end the comparison like Ctrl-C. Only the main thread gets signals, so other threads change
    nothing."""
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: Any = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
