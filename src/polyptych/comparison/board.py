"""The progress board of a comparison: one row per run; plain lines without a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from polyptych.comparison.grid import Entry
from polyptych.comparison.progress import Progress, State, time_left
from polyptych.metrics._accumulation import shown_name
from polyptych.reports.tables import duration

STYLES: dict[State, str] = {"waiting": "dim", "training": "bold cyan", "testing": "cyan", "finished": "green",
                            "failed": "bold red"}
IMPORTANCE = ("failed", "testing", "training", "waiting", "finished")  # what stays when a screen is too small
FEW_TASKS = 4
LOOK_EVERY = 0.4  # seconds between two looks at the runs


class Board:
    """Shows :class:`Progress` of every run.

    Args:
        at_once: how many runs train at the same time, to estimate the time left.
    """

    def __init__(self, entries: Sequence[Entry], at_once: int = 1, stream: TextIO | None = None):
        self.runs = [Progress(entry, "finished" if entry.finished else "waiting") for entry in entries]
        self.at_once = at_once
        self.console = Console(file=stream or sys.stderr, highlight=False)
        self._live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._told: dict[int, tuple[State, int]] = {}
        for run in self.runs:
            run.look()

    def __enter__(self) -> Board:
        if self._live:
            self._live.start()
        done = sum(run.state == "finished" for run in self.runs)
        if done:
            self.console.print(f"{done} of {len(self.runs)} runs are finished already", markup=False)
        self._told = {index: _news(run) for index, run in enumerate(self.runs)}
        self.refresh()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.refresh()
        if self._live:
            self._live.stop()

    def refresh(self) -> None:
        """Look at all unfinished runs, and show what is new."""
        for run in self.runs:
            if run.state in ("training", "testing"):
                run.look()
        if self._live:
            self._live.update(self.picture(), refresh=True)
            return
        for index, run in enumerate(self.runs):
            if (news := _news(run)) != self._told[index]:
                self._told[index] = news
                self.console.print(self._line(run), markup=False, soft_wrap=True)

    def _line(self, run: Progress) -> str:
        if run.state == "failed":
            return f"{run.entry.label}: failed: {run.error}"
        if run.state == "finished":
            done = sum(other.state == "finished" for other in self.runs)
            left = self._time_left()
            return f"{run.entry.label}: finished, {done} of {len(self.runs)}" + (f", about {left} left" if left else "")
        return "  ".join([f"{run.entry.label}: step {run.step}/{run.steps}", *_headlines(run)])

    def picture(self) -> Group:
        """The board as it is now: rows, errors, and what is left."""
        errors = [Text(f"{run.entry.label}: {run.error}", "red") for run in self.runs if run.error]
        return Group(self._table(), *errors, self._footer())

    def _table(self) -> Table:
        names = list(self.runs[0].entry.method.run.tasks)
        table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
        for title in ("network", "balancer"):
            table.add_column(title, overflow="ellipsis", no_wrap=True)
        for title in ("seed", "state", "step"):
            table.add_column(title, no_wrap=True, justify="right" if title == "seed" else "left")
        shown = names if len(names) * 12 + 70 <= self.console.width else names[:FEW_TASKS]
        for name in shown:
            headline = self.runs[0].entry.method.run.tasks[name].owner.headline
            table.add_column(f"{name} {shown_name(headline)}", justify="right", overflow="ellipsis", no_wrap=True)
        for run in self._visible():
            values = [f"{run.validation[name]:.4g}" if name in run.validation else "" for name in shown]
            method = run.entry.method
            table.add_row(Text(method.network), Text(method.balancer), str(run.entry.seed),
                          Text(run.state, STYLES[run.state]), _bar(run), *values)
        return table

    def _visible(self) -> list[Progress]:
        """All rows, or the most important ones for which the screen has room, in order."""
        room = max(3, self.console.height - 5 - 2 * sum(bool(run.error) for run in self.runs))
        ranked = sorted(self.runs, key=lambda run: IMPORTANCE.index(run.state))
        kept = {id(run) for run in ranked[:room]}
        return [run for run in self.runs if id(run) in kept]

    def _footer(self) -> Text:
        count = {state: sum(run.state == state for run in self.runs) for state in STYLES}
        parts = [f"{number} {state}" for state, number in count.items() if number]
        left = self._time_left()
        return Text(", ".join(parts) + (f"; about {left} left" if left else ""), "dim")

    def _time_left(self) -> str:
        seconds = time_left(self.runs, self.at_once)
        return duration(seconds) if seconds is not None and seconds > 0 else ""


def _news(run: Progress) -> tuple[State, int]:
    """What is worth a line when it changes. Testing follows the last validation, whose line says enough."""
    return "training" if run.state == "testing" else run.state, run.validated


def _bar(run: Progress) -> Table:
    both = Table.grid(padding=(0, 1, 0, 0))
    both.add_row(ProgressBar(total=run.steps, completed=run.step, width=12), Text(f"{run.step}/{run.steps}"))
    return both


def _headlines(run: Progress) -> list[str]:
    tasks = run.entry.method.run.tasks
    return [f"{name} {shown_name(tasks[name].owner.headline)} {value:.4g}" for name, value in run.validation.items()]
