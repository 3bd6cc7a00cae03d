"""How tasks affect each other, for the terminal, Markdown, and the page of a run: tables, figures, and what stands out.

Everything is computed from looks (:class:`polyptych.task_gradients.Look`), each of one batch at one step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from polyptych.reports import style
from polyptych.reports.style import COLORS
from polyptych.reports.tables import ABSENT, MINUS, escape_markdown, is_number
from polyptych.task_gradients import WHOLE, Look

AGREE, CONFLICT = COLORS[0], COLORS[4]
MUCH = 0.25  # of the effect of a task's own step on its loss; another task's step with this effect gets full color
LITTLE = 0.05  # of the same: smaller effects are not mentioned, however certain
LARGER = 4.0  # a ratio from this on is mentioned
MOST_WORDS = 6  # lines on what stands out
MOST_COLUMNS = 40  # of a picture over time; neighbors are averaged


@dataclass(frozen=True)
class Grid:
    """Numbers by row and column; NaN if there is none."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: Float[np.ndarray, "r c"]


@dataclass(frozen=True)
class TaskRow:
    """One task: its loss, relative to the first one, and the size of its gradient in the shared parameters.

    Attributes:
        left: last loss over first loss.
        size: norm of the gradient of the loss times its weight.
        share: share of ``size`` in the sum over the tasks.
    """

    task: str
    loss: float
    left: float
    weight: float
    size: float
    share: float


class Findings:
    """Summary over looks. Numbers are means over them; None is ignored.

    Args:
        looks: in order of step.
        first: the initial loss of each task; by default that of the first look.
    """

    def __init__(self, looks: Sequence[Look], first: Mapping[str, float] | None = None):
        self.looks = sorted(looks, key=lambda look: look.step)
        self.first = dict(first or {})

    @cached_property
    def stages(self) -> tuple[str, ...]:
        """The stages in order; all stages together come last."""
        found = dict.fromkeys(stage for look in self.looks for stage in look.norms if stage != WHOLE)
        return (*found, WHOLE)

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(task for look in self.looks for task in look.losses))

    @cached_property
    def pairs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(pair for look in self.looks for pair in look.cosines.get(WHOLE, {})))

    @cached_property
    def task_rows(self) -> list[TaskRow]:
        last = self.looks[-1]
        sizes = {task: _mean(abs(look.weights.get(task, 1.0)) * _value(look.norms[WHOLE].get(task))
                             for look in self.looks) for task in self.tasks}
        total = sum(size for size in sizes.values() if math.isfinite(size))
        rows = []
        for task in self.tasks:
            losses = [_value(look.losses.get(task)) for look in self.looks]
            now = _mean(losses[-max(1, len(losses) // 5):])
            begun = self.first.get(task, next((x for x in losses if math.isfinite(x)), math.nan))
            rows.append(TaskRow(task, now, now / begun if begun > 0 else math.nan, last.weights.get(task, 1.0),
                                sizes[task], sizes[task] / total if total > 0 else math.nan))
        return rows

    @cached_property
    def by_stage(self) -> Grid:
        """Mean cosines: pairs by stages."""
        return Grid(tuple(map(_spoken, self.pairs)), self.stages, np.array(
            [[_mean(_value(look.cosines.get(stage, {}).get(pair)) for look in self.looks) for stage in self.stages]
             for pair in self.pairs]).reshape(len(self.pairs), len(self.stages)))

    @cached_property
    def conflicts(self) -> dict[str, float]:
        """By pair, the share of looks in which their gradients conflicted (a cosine below zero)."""
        return {pair: _mean(float(cosine < 0) if math.isfinite(cosine) else math.nan
                            for look in self.looks for cosine in [_value(look.cosines[WHOLE].get(pair))])
                for pair in self.pairs}

    @cached_property
    def over_time(self) -> Grid:
        """Cosines over all shared parameters: pairs by steps."""
        parts = np.array_split(np.array(self.looks, dtype=object), min(len(self.looks), MOST_COLUMNS))
        return Grid(tuple(map(_spoken, self.pairs)), tuple(f"{part[-1].step:,}" for part in parts), np.array(
            [[_mean(_value(look.cosines[WHOLE].get(pair)) for look in part) for part in parts]
             for pair in self.pairs]).reshape(len(self.pairs), len(parts)))

    @cached_property
    def affinity(self) -> Grid:
        """By how much a step for the task in the row lowers the loss in the column, in percent of that loss."""
        return Grid(self.tasks, self.tasks, np.array(
            [[100 * _mean(_value(look.affinity.get(task, {}).get(other)) for look in self.looks)
              for other in self.tasks] for task in self.tasks]))

    @cached_property
    def affinity_error(self) -> Float[np.ndarray, "t t"]:
        """The standard error of each entry; NaN for fewer than three looks."""
        return np.array([[_error([100 * _value(look.affinity.get(task, {}).get(other)) for look in self.looks])
                          for other in self.tasks] for task in self.tasks])

    @cached_property
    def words(self) -> list[str]:
        """What stands out, one sentence each, the most important first; at least one."""
        found = [*self._harm(), *self._sizes(), *self._conflicting(), *self._speeds()][:MOST_WORDS]
        return found or ["Nothing stands out: no step for one task harms another, gradients are of like size, and no "
                         "pair of tasks conflicts in most looks."]

    def _harm(self) -> Iterable[str]:
        grid, error = self.affinity.values, self.affinity_error
        found = [(grid[i, j], task, other) for i, task in enumerate(self.tasks) for j, other in enumerate(self.tasks)
                 if i != j and grid[i, j] < min(0, -LITTLE * grid[j, j])
                 and (not math.isfinite(error[i, j]) or grid[i, j] < -2 * error[i, j])]
        for value, task, other in sorted(found)[:2]:
            own = grid[self.tasks.index(other), self.tasks.index(other)]
            beside = f" (a step for {other} itself lowers it by {own:.2g}%)" if own > 0 else ""
            yield f"A step for {task} raises the loss of {other} by {-value:.2g}%{beside}."

    def _sizes(self) -> Iterable[str]:
        rows = sorted((row for row in self.task_rows if row.size > 0), key=lambda row: row.size)
        if len(rows) > 1 and rows[-1].size >= LARGER * rows[0].size:
            yield (f"The weighted gradient of {rows[-1].task} is {rows[-1].size / rows[0].size:.2g} times that of "
                   f"{rows[0].task} and {100 * rows[-1].share:.0f}% of all: it decides what is shared.")

    def _conflicting(self) -> Iterable[str]:
        often = []
        for pair, share in self.conflicts.items():
            cosines = [_value(look.cosines[WHOLE].get(pair)) for look in self.looks]
            mean, error = _mean(cosines), _error(cosines)
            if share > 0.5 and (not math.isfinite(error) or mean < -2 * error):  # not due to chance
                often.append((mean, share, pair))
        for mean, share, pair in sorted(often)[:2]:
            values = self.by_stage.values[self.pairs.index(pair), :-1]
            where = ""
            if np.isfinite(values).any() and len(values) > 1:
                worst = int(np.nanargmin(values))
                where = f", most in {self.stages[worst]} ({signed(values[worst])})"
            one, other = pair.split("/")
            yield (f"{one} and {other} conflict in {100 * share:.0f}% of the looks: their mean cosine is "
                   f"{signed(mean)}{where}.")
        if len(often) > 2:
            yield f"Pairs that conflict in most looks, besides: {len(often) - 2}."

    def _speeds(self) -> Iterable[str]:
        rows = sorted((row for row in self.task_rows if math.isfinite(row.left)), key=lambda row: row.left)
        if len(rows) > 1 and rows[-1].left >= LARGER * rows[0].left and rows[0].left > 0:
            yield (f"{rows[0].task} learns fastest ({100 * rows[0].left:.0f}% of its first loss is left), "
                   f"{rows[-1].task} slowest ({100 * rows[-1].left:.0f}%).")

    def to_json(self) -> dict[str, Any]:
        """The same as plain data; None for missing values."""
        def rows(grid: Grid, keys: Sequence[str], scale: float = 1.0) -> dict[str, dict[str, float | None]]:
            return {key: {column: _known(value * scale) for column, value in zip(grid.columns, row, strict=True)}
                    for key, row in zip(keys, grid.values, strict=True)}

        tasks = {row.task: {"loss": _known(row.loss), "left": _known(row.left), "weight": _known(row.weight),
                            "weighted_gradient": _known(row.size), "share": _known(row.share)}
                 for row in self.task_rows}
        return {"looks": len(self.looks), "words": self.words, "tasks": tasks,
                "cosines": rows(self.by_stage, self.pairs),
                "conflicts": {pair: _known(share) for pair, share in self.conflicts.items()},
                "affinity": rows(self.affinity, self.tasks, 0.01)}


# -- text ----------------------------------------------------------------------------------------------------


def terminal(findings: Findings) -> RenderableType:
    """Tables for a terminal of 80 columns."""
    looks = len(findings.looks)
    over = f"tasks, over {looks} look{'s' if looks != 1 else ''}"
    tasks = _table(over, "loss", "left", "weight", "gradient", "share")
    for row in findings.task_rows:
        tasks.add_row(Text(row.task, "bold"), short(row.loss), whole_percent(row.left), short(row.weight),
                      short(row.size), whole_percent(row.share))
    stages = [stage.replace(" ", "\n") for stage in findings.stages]
    cosines = _table("cosine of\ngradients", "", *stages, "con-\nflict", left=2)
    for pair, values in zip(findings.pairs, findings.by_stage.values, strict=True):
        cosines.add_row(*(Text(task, "bold") for task in pair.split("/")),
                        *(Text(signed(x), "red" if x < 0 else "") for x in values),
                        whole_percent(findings.conflicts[pair]))
    affinity = _table("a step for ... lowers, in %", *findings.tasks)
    for task, values in zip(findings.tasks, findings.affinity.values, strict=True):
        affinity.add_row(Text(task, "bold"), *(Text(signed(x, 3), "red" if x < 0 else "") for x in values))
    return Group(tasks, cosines, affinity, *(Text(f"- {line}") for line in findings.words))


def _table(*columns: str, left: int = 1) -> Table:
    """A table without rows; numbers follow after ``left`` columns of names."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(Text(column), justify="left" if number < left else "right", overflow="fold",
                         vertical="bottom", no_wrap=number < left)
    return table


def markdown(findings: Findings) -> str:
    """The same tables as Markdown."""
    def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    name = escape_markdown
    return "\n\n".join([
        "\n".join(f"- {name(line)}" for line in findings.words),
        table(["task", "loss", "left", "weight", "gradient", "share"],
              ([name(row.task), short(row.loss), whole_percent(row.left), short(row.weight), short(row.size),
                whole_percent(row.share)] for row in findings.task_rows)),
        table(["cosine of gradients", *findings.stages, "conflict"],
              ([name(title), *map(signed, values), whole_percent(findings.conflicts[pair])] for pair, title, values in
               zip(findings.pairs, findings.by_stage.rows, findings.by_stage.values, strict=True))),
        table(["a step for ... lowers, in %", *map(name, findings.tasks)],
              ([name(task), *(signed(x, 3) for x in values)] for task, values in
               zip(findings.tasks, findings.affinity.values, strict=True))),
    ])


def signed(value: float, digits: int = 2) -> str:
    """``0.12``, ``−0.30``; a dash for a missing value."""
    if not is_number(value):
        return ABSENT
    text = f"{value:.{digits}f}"
    return text.replace("-", MINUS) if float(text) else f"{0:.{digits}f}"


def short(value: float) -> str:
    return f"{value:.3g}" if is_number(value) else ABSENT


def whole_percent(share: float) -> str:
    return f"{100 * share:.0f}%" if is_number(share) else ABSENT


def _spoken(pair: str) -> str:
    return pair.replace("/", ", ")


# -- pictures ------------------------------------------------------------------------------------------------


def pictures(findings: Findings, *, page: bool = True, when: str = "") -> list[tuple[str, str]]:
    """Figures as SVG, each with its title: cosines by stage, cosines over training (if there are looks of several
    steps), and the affinity.

    Args:
        page: for a page; otherwise whole files on white.
        when: makes the ids of one page's pictures differ.
    """
    found = [("Cosines of the tasks' gradients by stage", _heat(findings.by_stage, f"{when} stage", page, gap=1))]
    if len({look.step for look in findings.looks}) > 1:
        found.append(("Cosines over the optimizer steps", _heat(findings.over_time, f"{when} time", page)))
    found.append(("What a step for the task in the row takes off the loss in the column, in percent",
                  _heat(findings.affinity, f"{when} affinity", page, scale=None)))
    return found


def _heat(grid: Grid, name: str, page: bool, *, scale: float | None = 0.5, gap: int = 0) -> str:
    """Colored cells with their numbers: blue above zero, red below; stronger colors are farther from zero.

    Args:
        scale: the number that gets full color; None takes a quarter of the diagonal.
        gap: number of last columns that are set apart.
    """
    rows, columns = grid.values.shape
    numbers = columns <= 12
    wide = max(map(len, grid.rows), default=1) * 0.062 + columns * (0.62 if numbers else 0.14) + 0.3
    if scale is None:
        own = np.abs(grid.values.diagonal())
        scale = MUCH * float(np.nanmean(own)) if np.isfinite(own).any() else 1.0
    with style.figure((min(wide, 8.5), 0.45 + 0.24 * rows), text=8, axes=False) as drawing:
        axes: Axes = drawing.subplots()
        for i, j in np.ndindex(rows, columns):
            value, x = float(grid.values[i, j]), j + 0.12 * (j >= columns - gap)
            if math.isfinite(value):
                strength = min(1.0, abs(value) / (scale or 1.0))
                color = (*to_rgb(AGREE if value >= 0 else CONFLICT), 0.6 * strength)
                axes.fill([x, x + 0.96, x + 0.96, x], [i, i, i + 0.94, i + 0.94], facecolor=color, linewidth=0)
            if numbers:
                axes.text(x + 0.48, i + 0.5, signed(value, 2), ha="center", va="center", fontsize=7.5)
        axes.set_xlim(0, columns + 0.12 * bool(gap))
        axes.set_ylim(rows, 0)
        axes.set_yticks(np.arange(rows) + 0.5, grid.rows)
        shown = range(columns) if numbers else range(0, columns, math.ceil(columns / 6))
        axes.set_xticks([j + 0.48 + 0.12 * (j >= columns - gap) for j in shown], [grid.columns[j] for j in shown])
        axes.xaxis.tick_top()
        return style.svg(drawing, f"diagnosis {name}", page=page)


# -- numbers -------------------------------------------------------------------------------------------------


def _value(number: float | None) -> float:
    return math.nan if number is None else number


def _known(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def _error(values: Iterable[float]) -> float:
    """The standard error of a mean, NaN for fewer than three numbers."""
    known = [value for value in values if math.isfinite(value)]
    return float(np.std(known, ddof=1)) / math.sqrt(len(known)) if len(known) > 2 else math.nan


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan
