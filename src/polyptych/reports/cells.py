"""Columns of numbers by method, uniformly formatted, with intervals and the best marked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from polyptych.reports.tables import ABSENT, MINUS, is_number

ARROWS = {True: "↑", False: "↓"}


@runtime_checkable
class HasInterval(Protocol):
    """A mean over seeds, with half the width of its interval if it has one."""

    @property
    def mean(self) -> float: ...

    @property
    def half_width(self) -> float | None: ...


@dataclass(frozen=True)
class Cell:
    """One value, ready to print.

    Attributes:
        half: half the width of the interval; empty if there is none.
        best: whether it is the best mean of its column, unless it is a difference that may be due to chance.
        value: the number itself; NaN if absent.
        unsure: whether the sign of a difference may be due to chance.
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
        note: text below the title: metric, unit.
        arrow: which direction is better; empty if neither.
        trivial: score of the best constant prediction, if that makes sense.
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
    """A column of values without intervals."""
    return _column(title, values, [None] * len(values), style, note, higher)


def worded(title: str, texts: Sequence[str], note: str = "") -> Column:
    """A column of words instead of numbers."""
    return Column(title, tuple(Cell(text) for text in texts), note)


def estimated(title: str, estimates: Sequence[HasInterval | None], style: Callable[[float], str], note: str,
              higher: bool | None, trivial: str = "") -> Column:
    """A column of means with their intervals; None where a row has no value."""
    means = [math.nan if estimate is None else estimate.mean for estimate in estimates]
    halves = [None if estimate is None else estimate.half_width for estimate in estimates]
    return _column(title, means, halves, style, note, higher, trivial)


def _column(title: str, means: Sequence[float], halves: Sequence[float | None], style: Callable[[float], str],
            note: str, higher: bool | None, trivial: str = "") -> Column:
    finite = [mean for mean in means if is_number(mean)]
    best = None if higher is None or len(set(finite)) < 2 else max(finite) if higher else min(finite)
    texts = [style(mean) if is_number(mean) else ABSENT for mean in means]
    # Differences are written with their sign; one that may be due to chance is not marked as best.
    unsure = [style is signed and is_number(half) and not abs(mean) > half
              for mean, half in zip(means, halves, strict=True)]
    # Values that print the same are marked alike.
    cells = [Cell(text, style(half).removeprefix("+") if is_number(half) else "",
                  best is not None and text == style(best) and not chance, mean, chance)
             for text, mean, half, chance in zip(texts, means, halves, unsure, strict=True)]
    return Column(title, tuple(cells), note, "" if higher is None else ARROWS[higher], trivial)


def signed(value: float) -> str:
    text = f"{value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", MINUS)


def short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
