"""Progress on the screen: a bar with losses, throughput and time left; plain lines if there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def counting(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, called with (done, total); total 0 is unknown."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        line = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(line, completed=done, total=total or None)


class Display:
    """Progress of one run.

    Args:
        steps: length of the run; ``done`` of them are done already.
        quiet: show nothing (processes other than the main one).
    """

    def __init__(self, steps: int, done: int = 0, quiet: bool = False, stream: TextIO | None = None):
        self.console = Console(file=stream or sys.stderr, quiet=quiet, highlight=False)
        self._steps, self._live = steps, self.console.is_terminal and not quiet
        self._bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
            console=self.console, disable=not self._live)
        self._task = self._bar.add_task("train", total=steps, completed=done, status="")

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._bar.stop()

    def step(self, step: int) -> None:
        self._bar.update(self._task, completed=step)

    def status(self, step: int, losses: dict[str, float], images_per_second: float, learning_rate: float,
               weights: dict[str, float] | None = None) -> None:
        """Show losses, each with the weight of its task unless all weights are one."""
        weights = weights if weights and set(weights.values()) != {1.0} else {}
        parts = "  ".join(f"{name} {value:.3g}" + (f" (x{weights[name]:.2g})" if name in weights else "")
                          for name, value in losses.items())
        text = f"{parts}  {images_per_second:.1f} images/s"
        self._bar.update(self._task, completed=step, status=text)
        if not self._live:
            self.say(f"step {step}/{self._steps}  {text}  lr {learning_rate:.2g}")

    def say(self, text: object) -> None:
        """Print a line (or a table) above the bar."""
        self.console.print(text, soft_wrap=isinstance(text, str))
