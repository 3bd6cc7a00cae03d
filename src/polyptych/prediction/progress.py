"""Progress of predictions: a bar with throughput, or plain lines without a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PAUSE = 10.0  # seconds between two lines


class Counter:
    """Counts images and frames, and shows progress.

    Args:
        say: shows a line.
    """

    def __init__(self, say: Callable[[object], None]):
        self._say = say
        console = Console(file=sys.stderr)
        self._bar = Progress(TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(),
                             TextColumn("{task.fields[speed]}"), TimeElapsedColumn(), TextColumn("left"),
                             TimeRemainingColumn(), console=console, disable=not console.is_terminal,
                             redirect_stdout=sys.stdout.isatty())  # lines that go into a pipe stay there
        self._start = self._spoke = time.monotonic()
        self.done = 0

    def __enter__(self) -> Counter:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._bar.stop()

    def begin(self, what: str, total: int) -> None:
        """Begin a new source; ``total`` is 0 if unknown."""
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._what, self._total, self._here = what, total, 0
        self._task = self._bar.add_task(what, total=total or None, speed="")

    def step(self) -> None:
        """Count one more image or frame."""
        self.done, self._here = self.done + 1, self._here + 1
        self._bar.update(self._task, completed=self._here, speed=f"{self.speed:.1f}/s")
        now = time.monotonic()
        if self._bar.disable and now - self._spoke >= PAUSE:
            self._spoke = now
            self._say(f"{self._what}: {self._here}" + (f" of {self._total}" if self._total else "") +
                      f", {self.speed:.1f}/s")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def speed(self) -> float:
        """Images and frames per second, reading and writing included."""
        return self.done / max(self.seconds, 1e-9)
