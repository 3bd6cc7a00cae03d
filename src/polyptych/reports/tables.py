"""The result of an evaluation as a table, for the terminal, for Markdown and for the report page.

Next to every metric is the trivial baseline: the score of the best constant prediction (majority class, mean depth) on
the same images. *Skill* puts the headline of a task between that baseline (0) and a perfect prediction (1).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

from rich import box
from rich.table import Table
from rich.text import Text

from polyptych.evaluation_record import Evaluation, TaskResult
from polyptych.metrics._accumulation import shown_name

ABSENT, MINUS, TIMES = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Row:
    """One metric of one task, ready to print.

    Attributes:
        headline: whether this is the headline metric; its row comes first and holds the task's skill.
    """

    task: str
    metric: str
    value: str
    trivial: str
    arrow: str
    headline: bool
    unit: str = ""
    skill: float | None = None

    @property
    def title(self) -> str:
        """The task with its unit in its first row, otherwise empty."""
        return (f"{self.task} ({self.unit})" if self.unit else self.task) if self.headline else ""

    @property
    def skill_text(self) -> str:
        return format_skill(self.skill) if self.headline else ""


@dataclass(frozen=True)
class ClassRow:
    """One class of a per-class table; ``share`` of the full bar is in [0, 1]."""

    name: str
    value: str
    share: float


@dataclass(frozen=True)
class MetricTable:
    """Rows and caption of an evaluation; ``skill`` is the mean over tasks."""

    rows: tuple[Row, ...]
    caption: str
    skill: float | None
    notes: tuple[tuple[str, str], ...] = ()


def metric_table(evaluation: Evaluation) -> MetricTable:
    """The rows that every form of the table shows: the headline of each task first, then its other metrics."""
    rows = tuple(row for name, task in evaluation.tasks.items() for row in _task_rows(name, task))
    notes = tuple((name, note) for name, task in evaluation.tasks.items() if (note := task.remark))
    return MetricTable(rows, caption(evaluation), evaluation.skill, notes)


def terminal_table(evaluation: Evaluation) -> Table:
    """The table for a terminal; headlines are bold."""
    table = metric_table(evaluation)
    # Text objects, never markup: names come from files.
    out = Table(box=box.ROUNDED, caption=Text(table.caption, "dim"), caption_justify="left", show_footer=True,
                header_style="bold")
    out.add_column("task", footer=Text("mean"))
    out.add_column("metric")
    out.add_column("value", justify="right")
    out.add_column("trivial", justify="right", style="dim")
    out.add_column("skill", justify="right", footer=Text(format_skill(table.skill)))
    for index, row in enumerate(table.rows):
        bold = "bold" if row.headline else ""
        ends = index + 1 == len(table.rows) or table.rows[index + 1].headline
        out.add_row(Text(row.title, "bold"), Text(f"{row.metric} {row.arrow}".strip(), bold),
                    Text(row.value, bold), Text(row.trivial), Text(row.skill_text, bold), end_section=ends)
    return out


def markdown_table(evaluation: Evaluation) -> str:
    """The table as Markdown, with the caption below."""
    table = metric_table(evaluation)
    lines = ["| task | metric | value | trivial | skill |", "|---|---|---:|---:|---:|"]
    for row in table.rows:
        mark = "**" if row.headline else ""
        task = f"**{escape_markdown(row.title)}**" if row.headline else ""
        metric = f"{mark}{escape_markdown(row.metric)}{mark} {row.arrow}".strip()
        lines.append(f"| {task} | {metric} | {mark}{row.value}{mark} | {row.trivial} | {row.skill_text} |")
    lines.append(f"| mean | | | | {format_skill(table.skill)} |")
    return "\n".join([*lines, "", escape_markdown(table.caption), ""])


def class_rows(values: Mapping[str, float | None]) -> list[ClassRow]:
    """The rows of a per-class table, in the order of the classes. Bars are full at 100, or at 1 when all
    values are fractions."""
    known = {name: value for name, value in values.items() if is_number(value)}
    full = 100.0 if any(value > 1 for value in known.values()) else 1.0
    digits = 1 if full == 100 else 3
    return [ClassRow(name, f"{value:.{digits}f}", min(1.0, max(0.0, value / full))) if is_number(value)
            else ClassRow(name, ABSENT, 0.0) for name, value in values.items()]


def caption(evaluation: Evaluation) -> str:
    """The facts needed to compare numbers: protocol, split, images, step, weights and input size."""
    size = evaluation.input_size
    parts = [
        f"protocol {evaluation.protocol}" if evaluation.protocol else "",
        f"{evaluation.split} split" if evaluation.split else "",
        f"{evaluation.images:,} images" if evaluation.images is not None else "",
        f"{len(evaluation.skipped)} of them skipped as unreadable" if evaluation.skipped else "",
        f"step {evaluation.step:,}" if evaluation.step is not None else "",
        f"{evaluation.weights} weights" if evaluation.weights else "",
        f"input {size[0]} {TIMES} {size[1]} (height {TIMES} width)" if size else "",
        f"seed {evaluation.seed}" if evaluation.seed is not None else "",
        f"comparable with {', '.join(evaluation.protocols)}" if evaluation.protocols else "",
    ]
    text = ", ".join(part for part in parts if part)
    facts = f"{text[0].upper()}{text[1:]}. " if text else ""
    scores = "".join(f"{shown_name(name).capitalize()} {value:.4g}. "
                     for name, value in evaluation.scores.items())
    return f"{scores}{facts}Trivial: the best constant prediction. Skill: 0 = trivial, 1 = perfect."


def format_pair(value: float | None, other: float | None) -> tuple[str, str]:
    """Two values of one metric with the same number of digits: about four significant ones of the larger."""
    sizes = [abs(v) for v in (value, other) if is_number(v)]
    largest = max(sizes, default=0.0)
    if largest and largest < 1e-3:
        style = ".2e"
    else:
        style = ",.0f" if largest >= 1e4 else ".1f" if largest >= 1e3 else ".2f" if largest >= 10 else ".3f"
        style = ".4f" if 0 < largest < 1 else style
    first, second = (format(v, style) if is_number(v) else ABSENT for v in (value, other))
    return first, second


def format_skill(skill: float | None) -> str:
    """A skill, with its sign if it is below the trivial baseline."""
    return f"{skill:.3f}".replace("-", MINUS) if is_number(skill) else ABSENT


def duration(seconds: float) -> str:
    """``2 h 5 min``, ``3 min 20 s``, ``20 s``, ``0.4 s``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    if minutes:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{rest} s"


def escape_markdown(text: str) -> str:
    """Escape external text so that Markdown (also inside a table) shows it literally."""
    text = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", " ".join(str(text).split()))
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _task_rows(name: str, task: TaskResult) -> list[Row]:
    headline = task.headline if task.headline in task.metrics else next(iter(task.metrics), "")
    rows = []
    for metric in sorted(task.metrics, key=lambda metric: metric != headline):
        value, trivial = format_pair(task.metrics[metric], task.trivial.get(metric))
        direction = task.higher_is_better.get(metric)
        rows.append(Row(task=name, metric=shown_name(metric), value=value, trivial=trivial,
                        arrow={True: "↑", False: "↓", None: ""}[direction], headline=metric == headline,
                        unit=task.unit, skill=task.skill if metric == headline else None))
    return rows


def is_number(value: float | None) -> TypeGuard[float]:
    """Neither absent nor NaN nor infinite."""
    return value is not None and math.isfinite(value)
