"""Progress of the runs of a comparison, read from their folders, which any process on any machine can do."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from polyptych.comparison.grid import Entry

State = Literal["waiting", "training", "testing", "finished", "failed"]
TAIL = 1 << 16  # bytes at the end of a log, enough for its latest lines


@dataclass
class Progress:
    """One run as the board shows it.

    Attributes:
        step: optimizer steps done, of ``steps``.
        seconds: spent on them.
        validation: headline values by task at the last validation, which was at step ``validated``.
        error: why it failed, in one line.
    """

    entry: Entry
    state: State = "waiting"
    step: int = 0
    seconds: float = 0.0
    validation: dict[str, float] = field(default_factory=dict)
    validated: int = 0
    error: str = ""

    @property
    def steps(self) -> int:
        return self.entry.method.run.steps

    def look(self) -> None:
        """Read what the run has written since. A log is cut off on resume, so that the step may go back."""
        headlines = {name: task.owner.headline for name, task in self.entry.method.run.tasks.items()}
        seen: set[str] = set()
        for event in _latest(self.entry.folder / "metrics.jsonl"):
            kind = event["event"]
            if kind in seen:
                continue
            seen.add(kind)
            if kind == "train":
                self.step, self.seconds = event["step"], event["seconds"]
            elif kind == "validation":
                self.validated = event["step"]
                self.validation = {name: event["metrics"][name][headline] for name, headline in headlines.items()}
        if self.state == "training" and self.step >= self.steps:
            self.state = "testing"


def time_left(progresses: list[Progress], at_once: int) -> float | None:
    """Seconds until all runs are trained, ``at_once`` of them side by side; None before any speed is known.

    A run whose speed is not known yet is taken to be as fast as the others of its network, or as all others.
    """
    def speed(like: Progress | None) -> list[float]:
        return [p.seconds / p.step for p in progresses if p.step and p.seconds
                and (like is None or p.entry.method.network == like.entry.method.network)]

    everyone = speed(None)
    if not everyone:
        return None
    total, longest = 0.0, 0.0
    for progress in progresses:
        if progress.state in ("waiting", "training"):
            own = [progress.seconds / progress.step] if progress.step and progress.seconds else speed(progress)
            rate = own or everyone
            left = (progress.steps - progress.step) * sum(rate) / len(rate)
            total, longest = total + left, max(longest, left)
    return max(total / max(at_once, 1), longest)


def _latest(path: Path) -> list[dict[str, Any]]:
    """The complete events at the end of a log, latest first."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    whole = lines[1 if size > TAIL else 0:-1]  # the first may be half, the last has not ended yet
    return [json.loads(line) for line in reversed(whole)]
