"""The report of a comparison: one HTML file that needs nothing else, and the same as Markdown, CSV and JSON."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from polyptych.comparison import scatter
from polyptych.comparison.long_form import write_csv
from polyptych.comparison.pictures import Example, write_examples
from polyptych.comparison.results import Comparison, MethodResult
from polyptych.comparison.statistics import Estimate
from polyptych.comparison.tuning import in_words
from polyptych.metrics._accumulation import shown_name
from polyptych.record import encode, flat
from polyptych.reports import templates
from polyptych.reports.cells import Cell, Column, estimated, exact, short, signed, worded
from polyptych.reports.published import PublishedTable, published_tables
from polyptych.reports.tables import (
    ABSENT,
    TIMES,
    duration,
    escape_markdown,
    format_pair,
    format_skill,
    is_number,
)

TWO_SIDED = 1.96  # deviations of a normal distribution in half of a 95% interval


@dataclass(frozen=True)
class Page:
    """A comparison in words and cells, for every form of the report."""

    comparison: Comparison
    examples: Sequence[Example]
    out: Path

    @property
    def methods(self) -> tuple[MethodResult, ...]:
        return self.comparison.methods

    @property
    def title(self) -> str:
        return self.comparison.recipe or "comparison"

    @cached_property
    def results(self) -> list[Column]:
        """Headline of every task, delta_mtl with its group, mean rank."""
        return [*map(self._task_column, self.comparison.tasks), self._delta_column(None), *self._groups, exact(
            "mean rank", [method.mean_rank for method in self.methods], lambda value: f"{value:.2f}", higher=False)]

    @property
    def summary_columns(self) -> list[Column]:
        """The last columns of :attr:`results`, if there is no room for all tasks."""
        return self.results[len(self.comparison.tasks):]

    @property
    def _groups(self) -> list[Column]:
        letters = [method.group for method in self.methods]
        return [worded("group", letters)] if any(letters) else []

    @cached_property
    def certainty(self) -> list[Column]:
        """The evidence for each delta_mtl: its interval, its test, other images, and the untuned reference."""
        methods = self.methods
        columns = [self._delta_column(None),
                   worded("interval", [_interval(None if m.reference else m.delta_mtl) for m in methods], "%"),
                   worded("p", [_probability(m.p_corrected) for m in methods], "corrected"), *self._groups]
        if any(m.image_deviation is not None for m in methods):
            halves = [ABSENT if m.image_deviation is None else f"± {TWO_SIDED * m.image_deviation:.2f}"
                      for m in methods]
            columns.append(worded("images", halves, "%"))
        if any(m.over_untuned is not None for m in methods):
            columns.append(estimated("over untuned", [m.over_untuned for m in methods], signed, "%", higher=True))
        return columns

    @cached_property
    def ranks(self) -> list[Column]:
        """Of every task, then their mean."""
        def column(title: str, values: list[float], digits: int) -> Column:
            return exact(title, values, lambda value: f"{value:.{digits}f}".removesuffix(".0"), higher=False)

        return [*(column(task, [method.ranks.get(task, math.nan) for method in self.methods], 1)
                  for task in self.comparison.tasks), column("mean", [m.mean_rank for m in self.methods], 2)]

    @property
    def verdict(self) -> str:
        """What the tests show, in a sentence or two; empty if there are too few values for a test."""
        tested = [method for method in self.methods if method.p_corrected is not None]
        if not tested:
            return ""
        apart = [method.label for method in tested if method.differs]
        said = (f"{_listed(apart)} {'differs' if len(apart) == 1 else 'differ'} from the reference beyond chance"
                if apart else "No method differs from the reference beyond chance")
        least = self.comparison.detectable
        return f"{said} (t test paired by seed, Holm's correction over {_count(len(tested), 'row')}, level 5%)." + (
            f" A true difference of {short(least)}% would have been found in four of five repetitions."
            if least else "")

    @property
    def tried(self) -> list[tuple[str, list[tuple[str, str, bool]]]]:
        """The trials of every method: settings, validation skill, and whether they were chosen."""
        return [(label, [(in_words(trial.settings), "diverged" if trial.error else format_skill(trial.skill),
                          trial.chosen) for trial in trials]) for label, trials in self.comparison.tried.items()]

    @cached_property
    def gains(self) -> list[Column]:
        """The delta of every task, then their mean."""
        return [*map(self._delta_column, self.comparison.tasks), self._delta_column(None)]

    @cached_property
    def costs(self) -> list[Column]:
        """The costs of every network; empty if nothing was measured."""
        def of(title: str, note: str, get: Callable[[Any], float], higher: bool | None = False) -> Column:
            values = [math.nan if m.cost is None else get(m.cost) for m in self.methods]
            return exact(title, values, short, note, higher)

        times = [exact("training", [method.training_seconds.mean for method in self.methods], duration, "per run",
                       None)]
        spent = [m.processor_seconds.mean if m.processor_seconds else math.nan for m in self.methods]
        if any(map(is_number, spent)):
            times.append(exact("processor", spent, duration, "per run", None))
        if all(method.cost is None for method in self.methods):
            return times
        return [
            of("parameters", "million", lambda cost: cost.parameters / 1e6),
            of("multiply-adds", "billion", lambda cost: cost.multiply_adds / 1e9),
            of("memory", "inference, MiB", lambda cost: cost.memory_inference / 2**20),
            of("memory", "training, MiB", lambda cost: cost.memory_training / 2**20),
            of("latency", "ms", lambda cost: 1e3 * cost.latency),
            of("throughput", "images/s", lambda cost: cost.throughput, higher=True),
            *times,
        ]

    @cached_property
    def everything(self) -> list[Column]:
        """Every metric of every task that all methods share."""
        return [self._metric_column(task, metric) for task, facts in self.comparison.tasks.items()
                for metric in facts.trivial if all(metric in method.metrics[task] for method in self.methods)]

    @cached_property
    def points(self) -> list[scatter.Point]:
        return [scatter.Point(method.network, method.balancer, method.cost.multiply_adds / 1e9, method.delta_mtl.mean,
                              None if method.reference else method.delta_mtl.half_width)
                for method in self.methods
                if method.cost is not None and method.delta_mtl is not None and is_number(method.delta_mtl.mean)]

    @property
    def scatter(self) -> Markup:
        return Markup(scatter.svg(self.points))

    @property
    def best(self) -> MethodResult | None:
        """The method with the highest delta_mtl, the reference aside."""
        found = [method for method in self.methods
                 if not method.reference and method.delta_mtl is not None and is_number(method.delta_mtl.mean)]
        return max(found, key=lambda method: method.delta_mtl.mean, default=None)  # type: ignore[union-attr]

    @property
    def summary(self) -> list[tuple[str, str]]:
        """What was compared, on what, for how long, where."""
        of, run = self.comparison, self.comparison.run
        networks = list(dict.fromkeys(method.network for method in self.methods))
        balancers = list(dict.fromkeys(method.balancer for method in self.methods))
        size = f", input {run.size[0]} {TIMES} {run.size[1]} (height {TIMES} width)" if run.size else ""
        reference = of.reference
        lines = {
            "Networks": ", ".join(networks),
            "Balancers": ", ".join(balancers),
            "Reference": f"{reference.label}, trained the same way with a network per task" if reference
            else "none finished: there is no delta",
            "Data": f"{_count(of.images, 'image')} of the {of.split} split, protocol {of.protocol}"
                    + (f", comparable with {', '.join(of.protocols)}" if of.protocols else ""),
            "Tuning": self._tuning(),
            "Budget": f"{run.steps:,} steps of {run.batch_size * run.accumulate} images{size}; {self.seeds_in_words()}",
            "Machine": "; ".join(of.machines),
            "Commit": ", ".join(of.commits),
        }
        return [(name, line) for name, line in lines.items() if line]

    @property
    def notes(self) -> list[tuple[str, str]]:
        """How to read the numbers: each statement holds for this table."""
        several = len(self.comparison.seeds) > 1
        grouped, images = bool(self._groups), any(m.image_deviation is not None for m in self.methods)
        confidence = f"{self.comparison.confidence:.0%}"
        interval = (f"mean ± half the width of the {confidence} confidence interval of the mean over "
                    "seeds (Student t, two-sided). It covers the variation between trainings, not between test images. "
                    "The best mean of a column is bold. A gain whose interval contains 0 is faint and never bold."
                    if several else
                    "there is one seed, so there is no interval: differences may be chance. The best value of a "
                    "column is bold.")
        return [
            ("Values", interval),
            ("delta_mtl", "mean over tasks of the relative gain of the headline metric over the single-task reference, "
             "in percent, higher is better" + (", paired by seed: each seed is compared with the reference of the same "
                                               "seed." if several else ".")),
            *([("p", "probability of a difference at least this large if there were none in truth: two-sided t test on "
                "the differences by seed, corrected for the number of rows (Holm).")]
              if several else []),
            *([("Group", "rows that share a letter cannot be told apart (Tukey's test of all pairs, seeds as blocks, "
                "one spread for all rows).")] if grouped else []),
            *([("Images", f"how far other test images would move the mean difference: {TWO_SIDED:g} deviations over "
                f"resampled test sets (batches of {self.comparison.run.batch_size} consecutive images). It comes on "
                "top of the interval over seeds.")] if images else []),
            ("Mean rank", "rank of the mean headline among the rows of this table, ties shared, averaged over tasks; "
             "it changes with the rows."),
            ("Trivial", "the best constant prediction learned from training labels."),
            ("Selection", f"weights: {self._selection()} The {self.comparison.split} split was evaluated once per "
             "run, after its training; nothing was chosen on it."),
            *((name, "; ".join(part for part in (facts.note, self.comparison.rules.get(name, "")) if part))
              for name, facts in self.comparison.tasks.items() if facts.note or name in self.comparison.rules),
            *((f"Not {name}", f"the numbers do not belong to this published protocol: {reason}.")
              for name, reason in self.comparison.other_protocols.items()),
        ]

    @cached_property
    def published(self) -> list[PublishedTable]:
        """Published rows below the methods, for protocols that their numbers belong to."""
        own = {method.label: {task: {name: estimate.mean for name, estimate in metrics.items()}
                              for task, metrics in method.metrics.items()} for method in self.methods}
        return published_tables(own, self.comparison.protocols)

    @property
    def settings(self) -> list[tuple[str, str]]:
        skipped = ("seed", "encoder.", "decoder.", "balancer.",
                   *(["optimizer.learning_rate"] if self.comparison.tuning else []))
        return [(name, _shown(value)) for name, value in flat(encode(self.comparison.run))
                if not name.startswith(skipped)]

    @property
    def links(self) -> list[tuple[str, list[tuple[int, str]]]]:
        """Reports (or records) of all runs, relative to the comparison's folder."""
        def link(place: str) -> str:
            target = Path(os.path.relpath(place, self.out))
            return (target if target.suffix == ".json" else target / "report.html").as_posix()

        return [(method.label, [(seed, link(place)) for seed, place in method.runs.items()])
                for method in self.methods]

    def seeds_in_words(self) -> str:
        seeds = ", ".join(map(str, self.comparison.seeds))
        return f"{len(self.comparison.seeds)} seeds ({seeds})" if len(self.comparison.seeds) > 1 else (
            f"one seed ({seeds}), so no interval")

    def _tuning(self) -> str:
        of = self.comparison.tuning
        if of is None:
            return ""
        length = f" of {of.steps:,} steps" if of.steps else ""
        return (f"{of.trials} trials{length} of every method with seed {of.seed}, chosen by mean skill on the "
                "validation split; no trial was tested")

    def _selection(self) -> str:
        best = "the best on the validation split, which is carved out of the training images."
        return best if self.comparison.run.select == "best" else "those of the last step, for every method."

    def _task_column(self, task: str) -> Column:
        return self._metric_column(task, self.comparison.tasks[task].headline)

    def _metric_column(self, task: str, metric: str) -> Column:
        facts = self.comparison.tasks[task]
        trivial = facts.trivial.get(metric, math.nan)
        estimates = [method.metrics[task][metric] for method in self.methods]
        largest = max((abs(value) for value in (trivial, *(e.mean for e in estimates)) if is_number(value)), default=0)
        note = shown_name(metric) + (f", {facts.unit}" if facts.unit and metric == facts.headline else "")
        return estimated(task, estimates, lambda value: format_pair(value, largest)[0], note,
                          facts.higher_is_better.get(metric), format_pair(trivial, largest)[0])

    def _delta_column(self, task: str | None) -> Column:
        """Of one task, or of all: delta_mtl."""
        estimates = [Estimate(0.0, None, {}) if method.reference  # by definition, not by measurement
                     else method.deltas[task] if task else method.delta_mtl for method in self.methods]
        return estimated(task or "delta_mtl", estimates, signed, "%", higher=True)


def write_comparison(comparison: Comparison, examples: Sequence[Example], out: Path) -> Path:
    """Write ``comparison.html`` (self-contained), ``.md``, ``.csv`` and ``.json``, and the pictures of the Markdown.

    Returns:
        The path of ``comparison.html``.
    """
    page = Page(comparison, examples, out)
    comparison.write(out / "comparison.json")
    write_csv(comparison, out / "comparison.csv")
    write_examples(examples, out)
    if page.points:
        (out / "scatter.svg").write_text(scatter.sheet(page.points), encoding="utf-8")
    for name in ("comparison.md", "comparison.html"):
        (out / name).write_text(_render(f"{name}.j2", page), encoding="utf-8")
    return out / "comparison.html"


def terminal_table(comparison: Comparison, width: int) -> Table:
    """A table for a terminal of that width: headlines, delta_mtl, group, and mean rank, or without headlines if these
    do not fit. The best mean of a column is bold."""
    page = Page(comparison, (), Path())
    caption = f"{comparison.protocol}, {comparison.split} split, {page.seeds_in_words()}"
    whole = _terminal_table(page, page.results, caption)
    console = Console(width=10_000)
    if console.measure(whole).maximum <= width:
        return whole
    return _terminal_table(page, page.summary_columns, f"{caption}; the tasks are in comparison.md")


def _terminal_table(page: Page, columns: Sequence[Column], caption: str) -> Table:
    table = Table(box=box.ROUNDED, header_style="bold", caption=Text(caption, "dim"), caption_justify="left")
    for title in ("network", "balancer"):
        table.add_column(title)
    for column in columns:
        table.add_column(Text(f"{column.title} {column.arrow}\n{column.note}".strip()), justify="right", no_wrap=True)
    if any(column.trivial for column in columns):
        table.add_row(Text("trivial", "dim"), "", *(Text(column.trivial, "dim") for column in columns),
                      end_section=True)
    for index, method in enumerate(page.methods):
        cells = [column.cells[index] for column in columns]
        table.add_row(Text(method.network), Text(f"{method.balancer}{' (untuned)' if method.untuned else ''}"),
                      *(Text(cell.whole, "bold" if cell.best else "") for cell in cells))
    return table


def markdown_table(page: Page, columns: Sequence[Column], trivial: bool = False) -> Markup:
    """Methods as rows, the best mean of a column bold."""
    lines = ["| network | balancer | " + " | ".join(escape_markdown(c.plain_title) for c in columns) + " |",
             "|---|---|" + "---:|" * len(columns)]
    if trivial:
        lines.append("| trivial | | " + " | ".join(column.trivial for column in columns) + " |")
    for index, method in enumerate(page.methods):
        cells = [column.cells[index] for column in columns]
        values = " | ".join(f"**{cell.whole}**" if cell.best else cell.whole for cell in cells)
        name = escape_markdown(method.network) + (" (reference)" if method.reference else "")
        balancer = ", ".join([method.balancer, *_remarks(method)])
        lines.append(f"| {name} | {escape_markdown(balancer)} | {values} |")
    return Markup("\n".join(lines) + "\n")


def _remarks(method: MethodResult) -> list[str]:
    """What tuning did with a row."""
    return ["untuned"] if method.untuned else [in_words(method.settings)] if method.settings else []


def _interval(estimate: Estimate | None) -> str:
    if estimate is None or estimate.half_width is None:
        return ABSENT
    return f"{signed(estimate.mean - estimate.half_width)} to {signed(estimate.mean + estimate.half_width)}"


def _probability(p: float | None) -> str:
    return ABSENT if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ABSENT if value in (None, "", []) else " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _tint(cell: Cell, columns: Sequence[Column]) -> str:
    """Strength of a gain's color: 45% for the largest gain or loss of the whole table."""
    values = [abs(other.value) for column in columns for other in column.cells if is_number(other.value)]
    largest = max(values, default=0.0)
    return f"{45 * abs(cell.value) / largest:.0f}%" if largest and is_number(cell.value) else "0%"


def _breakable(label: str) -> Markup:
    """A label that may wrap before every part and option."""
    return Markup(re.sub(r"([+:,])", r"<wbr>\1", str(escape(label))))


def _render(template: str, page: Page) -> str:
    helpers = {"markdown_table": markdown_table, "tint": _tint, "signed": signed, "breakable": _breakable,
               "remarks": _remarks}
    return templates.render(template, helpers, package=__package__, page=page, comparison=page.comparison)
