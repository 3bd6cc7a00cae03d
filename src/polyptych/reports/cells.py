"""Columns of numbers over methods: formatted alike, with their intervals, the best marked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from polyptych.comparison.statistics import Estimate
from polyptych.reports.tables import ABSENT, MINUS, is_number

ARROWS = {True: "↑", False: "↓"}


@dataclass(frozen=True)
class Cell:
    """One value, ready to print.

    Attributes:
        half: half the width of the interval, empty where there is none.
        best: the best mean of its column.
        value: the number itself, NaN where absent.
        unsure: of a difference, that its sign may be chance.
    """

    text: str
    half: str = ""
    best: bool = False
    value: float = math.nan
    unsure: bool = False

    @property
    def whole(self) -> str:
        return f"{self.text} ± {self.half}" if self.half else self.text


@dataclass(frozen=True)
class Column:
    """A column of a table: its cells are those of the methods in order.

    Attributes:
        note: what stands below the title: metric, unit.
        arrow: which direction is better, empty where none is.
        trivial: what the best constant prediction scores, where that makes sense.
    """

    title: str
    cells: tuple[Cell, ...]
    note: str = ""
    arrow: str = ""
    trivial: str = ""

    @property
    def plain_title(self) -> str:
        return " ".join(part for part in (self.title, self.note, self.arrow) if part)


def exact(title: str, values: Sequence[float], style: Callable[[float], str], note: str = "",
          higher: bool | None = None) -> Column:
    return estimated(title, [Estimate(value, None, {}) for value in values], style, note, higher)


def worded(title: str, texts: Sequence[str], note: str = "") -> Column:
    """Of words rather than of numbers."""
    return Column(title, tuple(Cell(text) for text in texts), note)


def estimated(title: str, estimates: Sequence[Estimate | None], style: Callable[[float], str], note: str,
              higher: bool | None, trivial: str = "") -> Column:
    means = [math.nan if estimate is None else estimate.mean for estimate in estimates]
    finite = [mean for mean in means if is_number(mean)]
    best = None if higher is None or len(set(finite)) < 2 else max(finite) if higher else min(finite)
    texts = [style(mean) if is_number(mean) else ABSENT for mean in means]
    # What looks equal is marked alike.
    cells = [Cell(text, _half(estimate, style), best is not None and text == style(best), mean,
                  estimate is not None and estimate.half_width is not None and estimate.spans_zero)
             for text, mean, estimate in zip(texts, means, estimates, strict=True)]
    return Column(title, tuple(cells), note, "" if higher is None else ARROWS[higher], trivial)


def _half(estimate: Estimate | None, style: Callable[[float], str]) -> str:
    half = estimate.half_width if estimate else None
    return style(half).removeprefix("+") if half is not None and is_number(half) else ""


def signed(value: float) -> str:
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", MINUS)


def short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def duration(seconds: float) -> str:
    """``2 h 5 min``, ``3.2 min``, ``45 s``, ``6.8 s``."""
    minutes = round(seconds / 60)
    if minutes >= 90:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
