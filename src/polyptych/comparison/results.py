"""The result of a comparison, typed, with everything that its tables, figures, and files show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from polyptych import __version__
from polyptych.comparison.grid import Entry, Method, row_label
from polyptych.comparison.records import Record, plain
from polyptych.comparison.statistics import (
    CONFIDENCE,
    Estimate,
    delta_mtl,
    deltas,
    groups,
    holm,
    mean_ranks,
    p_value,
    ranks,
    smallest_detectable,
)
from polyptych.comparison.tuning import Tried, Tuning
from polyptych.errors import InputError
from polyptych.evaluation_record import Evaluation, ImageList
from polyptych.profiling.profile import Cost
from polyptych.record import encode, write_json
from polyptych.run import Run

SPLIT = "test"


@dataclass(frozen=True)
class TaskFacts:
    """One task of the comparison: what its numbers mean, and the scores of the best constant prediction."""

    headline: str
    higher_is_better: dict[str, bool]
    unit: str
    note: str
    trivial: dict[str, float]


@dataclass(frozen=True)
class MethodResult:
    """One row of the table.

    Attributes:
        metrics: estimates over seeds, by task and metric.
        deltas: relative gain over the single-task reference by task, percent.
        delta_mtl: their mean, percent; both are paired by seed, and None if no seed has a reference.
        mean_rank: mean over tasks of the rank among the rows of this table; NaN if a headline is missing.
        training_seconds: time spent in optimizer steps, with ``processor_seconds`` of all cores.
        cost: cost of the network; None until measured.
        runs: folder or record, by seed.
        settings, untuned: what tuning chose, see :class:`polyptych.comparison.grid.Method`.
        ranks: rank of the mean headline, by task.
        over_untuned: delta_mtl over the reference with the recipe's settings, if that is another row.
        p_value, p_corrected: p-value of the hypothesis that delta_mtl is 0, alone and corrected for all rows (Holm).
        group: letters; rows that share one do not differ significantly.
        image_deviation: standard deviation of the mean delta_mtl over resampled test sets, percent; None if runs did
            not record it.
    """

    network: str
    balancer: str
    reference: bool
    metrics: dict[str, dict[str, Estimate]]
    deltas: dict[str, Estimate | None]
    delta_mtl: Estimate | None
    mean_rank: float
    training_seconds: Estimate
    cost: Cost | None = None
    runs: dict[int, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    untuned: bool = False
    processor_seconds: Estimate | None = None
    ranks: dict[str, float] = field(default_factory=dict)
    over_untuned: Estimate | None = None
    p_value: float | None = None
    p_corrected: float | None = None
    group: str = ""
    image_deviation: float | None = None

    @property
    def differs(self) -> bool:
        """From the reference, beyond chance."""
        return self.p_corrected is not None and self.p_corrected < 1 - CONFIDENCE

    @property
    def label(self) -> str:
        return row_label(self.network, self.balancer, self.untuned)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.runs)


@dataclass(frozen=True)
class Comparison:
    """Every number of a comparison. All belong to one protocol and one split.

    Attributes:
        recipe: the recipe that all runs started from.
        run: the settings that they share (those of the reference).
        seeds: the requested seeds; a method with a failed run has fewer.
        images: number of images of the test split.
        methods: rows of the table, the single-task reference first.
        machines, commits: the machines and commits that the runs were trained with, from their records.
        failed: error by run, for runs that did not finish.
        confidence: confidence level of the intervals.
        detectable: the smallest true delta_mtl that the table would show in four of five repetitions, percent.
        rules: by task, how its numbers were accumulated and what does not count; empty for older evaluations.
        image_list: the images on which all runs were tested; None for older evaluations.
        tuning, tried: how settings were chosen, and every trial by method; empty if nothing was tuned.
        protocols, other_protocols: published protocols that the numbers belong to, with notes, and why not to others.
    """

    recipe: str
    protocol: str
    split: str
    images: int
    seeds: tuple[int, ...]
    run: Run
    tasks: dict[str, TaskFacts]
    methods: tuple[MethodResult, ...]
    machines: tuple[str, ...]
    commits: tuple[str, ...]
    failed: dict[str, str] = field(default_factory=dict)
    confidence: float = CONFIDENCE
    detectable: float | None = None
    rules: dict[str, str] = field(default_factory=dict)
    image_list: ImageList | None = None
    tuning: Tuning | None = None
    tried: Tried = field(default_factory=dict)
    protocols: dict[str, list[str]] = field(default_factory=dict)
    other_protocols: dict[str, str] = field(default_factory=dict)

    @property
    def reference(self) -> MethodResult | None:
        return next((method for method in self.methods if method.reference), None)

    @property
    def directions(self) -> dict[str, bool]:
        """Whether higher is better, for the headline of every task."""
        return {name: task.higher_is_better[task.headline] for name, task in self.tasks.items()}

    def write(self, path: Path) -> None:
        """As JSON; what a number is not (NaN) is null."""
        write_json(path, plain({"version": __version__, **encode(self)}))


@dataclass(frozen=True)
class Finished:
    """The results of one finished run, from its folder or its record."""

    entry: Entry
    evaluation: Evaluation
    record: Record

    @staticmethod
    def read(entry: Entry) -> Finished:
        if entry.record is not None:
            record = Record.read(entry.record)
            return Finished(entry, record.evaluation(entry.record), record)
        record = Record.of_folder(entry.folder, entry.method.network, entry.method.balancer)
        return Finished(entry, record.evaluation(entry.folder / "evaluation" / f"{SPLIT}.json"), record)

    @property
    def place(self) -> Path:
        """Where its numbers are, for messages."""
        return self.entry.record or self.entry.folder

    @property
    def headlines(self) -> dict[str, float]:
        return {name: task.headline_value for name, task in self.evaluation.tasks.items()}


def collect(entries: Sequence[Entry], failed: Mapping[str, str]) -> Comparison:
    """Read all tested runs and compute the table.

    Args:
        entries: the runs, those of one method together; what is not tested is left out.
        failed: error by label of run, to be reported with the table.

    Raises:
        InputError: nothing is finished, or the runs belong to different protocols.
    """
    finished = [Finished.read(entry) for entry in entries if entry.tested]
    if not finished:
        reason = next(iter(failed.values()), "none was trained")
        raise InputError("the comparison", f"no finished run ({reason})", "at least one",
                         "correct the cause and repeat the command")
    refuse_other_protocols(finished)
    first = finished[0]
    seeds = tuple(dict.fromkeys(entry.seed for entry in entries))
    tasks = {name: TaskFacts(task.headline, dict(task.higher_is_better), task.unit, task.note,
                             dict(task.trivial))
             for name, task in first.evaluation.tasks.items()}
    rows = _rows(finished, tasks)
    return Comparison(
        recipe=first.entry.run.recipe, protocol=first.evaluation.protocol, split=SPLIT,
        images=first.evaluation.images or 0, seeds=seeds, run=first.entry.method.run, tasks=tasks,
        methods=rows, machines=_distinct(_machine(run.record.machine) for run in finished),
        commits=_distinct(run.record.commit for run in finished), failed=dict(failed),
        detectable=smallest_detectable([list(row.delta_mtl.by_seed.values()) for row in rows
                                        if row.delta_mtl and not row.reference]),
        rules={name: task.rule for name, task in first.evaluation.tasks.items() if task.rule},
        image_list=first.evaluation.image_list, protocols=first.evaluation.protocols,
        other_protocols=first.evaluation.other_protocols)


def refuse_other_protocols(finished: Sequence[Finished]) -> None:
    """Never put numbers of different protocols, from different images, or accumulated differently into one table.

    What an older evaluation does not record is not compared.
    """
    first = finished[0]
    for other in finished[1:]:
        if other.evaluation.protocol != first.evaluation.protocol:
            raise InputError(other.place, f"numbers of protocol {other.evaluation.protocol}",
                             f"protocol {first.evaluation.protocol}, that of {first.place}",
                             "compare runs of one protocol only")
        if other.evaluation.images != first.evaluation.images:
            raise InputError(other.place, f"numbers on {other.evaluation.images} {SPLIT} images",
                             f"the {first.evaluation.images} of {first.place}", "evaluate both on the same ones")
        lists = [run.evaluation.image_list for run in (first, other)]
        if None not in lists and lists[0] != lists[1]:
            raise InputError(other.place, f"numbers on other {SPLIT} images (evaluation/{SPLIT}.images.txt)",
                             f"those of {first.place}", "evaluate both on the same ones")
        for name, task in other.evaluation.tasks.items():
            rule, needed = task.rule, first.evaluation.tasks[name].rule if name in first.evaluation.tasks else ""
            if rule and needed and rule != needed:
                raise InputError(other.place, f"{name} with {rule}", f"{needed}, as {first.place} has",
                                 "evaluate both the same way")


def _rows(finished: Sequence[Finished], tasks: Mapping[str, TaskFacts]) -> tuple[MethodResult, ...]:
    methods: dict[int, tuple[Method, list[Finished]]] = {}
    for run in finished:
        methods.setdefault(id(run.entry.method), (run.entry.method, []))[1].append(run)
    directions = {name: task.higher_is_better[task.headline] for name, task in tasks.items()}
    reference = {run.entry.seed: run for run in finished if run.entry.method.reference}
    untuned = {run.entry.seed: run for run in finished if run.entry.method.untuned}
    # Runs of an older version lack what later ones measure besides.
    known = {name: [metric for metric in task.metrics
                    if all(metric in run.evaluation.tasks[name].metrics for run in finished)]
             for name, task in finished[0].evaluation.tasks.items()}
    rows = [_row(method, runs, reference, untuned, directions, known) for method, runs in methods.values()]
    means = [{name: row.metrics[name][task.headline].mean for name, task in tasks.items()} for row in rows]
    by_task = {name: ranks([row[name] for row in means], higher) for name, higher in directions.items()}
    corrected = holm([row.p_value for row in rows])
    letters = groups([row.delta_mtl.by_seed if row.delta_mtl else {} for row in rows])
    return tuple(replace(row, mean_rank=mean, ranks={name: of[index] for name, of in by_task.items()},
                         p_corrected=corrected[index], group=letters[index])
                 for index, (row, mean) in enumerate(zip(rows, mean_ranks(means, directions), strict=True)))


def _row(method: Method, runs: Sequence[Finished], reference: Mapping[int, Finished], untuned: Mapping[int, Finished],
         directions: Mapping[str, bool], known: Mapping[str, Sequence[str]]) -> MethodResult:
    metrics = {name: {metric: Estimate.of({run.entry.seed: run.evaluation.tasks[name].metrics[metric]
                                           for run in runs})
                      for metric in names} for name, names in known.items()}
    pairs = {run.entry.seed: (run, reference[run.entry.seed]) for run in runs if run.entry.seed in reference}

    def estimate(by_seed: dict[int, float]) -> Estimate | None:
        return Estimate.of(by_seed) if by_seed else None

    by_task = {seed: deltas(one.headlines, other.headlines, directions) for seed, (one, other) in pairs.items()}
    overall = {seed: delta_mtl(one.headlines, other.headlines, directions) for seed, (one, other) in pairs.items()}
    over_untuned = {run.entry.seed: delta_mtl(run.headlines, untuned[run.entry.seed].headlines, directions)
                    for run in runs if run.entry.seed in untuned}
    return MethodResult(
        network=method.network, balancer=method.balancer, reference=method.reference, metrics=metrics,
        deltas={name: estimate({seed: found[name] for seed, found in by_task.items()}) for name in directions},
        delta_mtl=estimate(overall), mean_rank=math.nan,
        training_seconds=Estimate.of({run.entry.seed: _number(run.record.seconds) for run in runs}),
        runs={run.entry.seed: str(run.place) for run in runs}, settings=dict(method.settings), untuned=method.untuned,
        processor_seconds=None if any(run.record.processor_seconds is None for run in runs) else Estimate.of(
            {run.entry.seed: _number(run.record.processor_seconds) for run in runs}),
        over_untuned=estimate(over_untuned),
        p_value=None if method.reference else p_value(list(overall.values())),
        image_deviation=None if method.reference else _image_deviation(list(pairs.values()), directions))


def _image_deviation(pairs: Sequence[tuple[Finished, Finished]], directions: Mapping[str, bool]) -> float | None:
    """How far other test images would move the mean delta_mtl over seeds. Both networks of a pair were resampled
    alike, so that what is hard for both does not count as spread of their difference."""
    found = [[run.record.replicates for run in pair] for pair in pairs]
    if not found or not all(len(values.get(task, ())) > 1 for pair in found for values in pair for task in directions):
        return None
    number = min(len(values[task]) for pair in found for values in pair for task in directions)

    def mean_delta(index: int) -> float:
        """Over seeds, with the images weighted as in that replicate."""
        at = [[{task: values[task][index] for task in directions} for values in pair] for pair in found]
        return math.fsum(delta_mtl(one, other, directions) for one, other in at) / len(at)

    moved = [mean_delta(index) for index in range(number)]
    deviation = float(np.std(moved, ddof=1))
    return deviation if math.isfinite(deviation) else None


def _machine(machine: Mapping[str, Any]) -> str:
    accelerator = machine.get("accelerator")
    if accelerator not in (None, "", "none"):
        return str(accelerator)
    cores = machine.get("cores")
    counted = f", {cores} core{'' if cores == 1 else 's'}" if cores else ""
    return f"{machine.get('processor', '')}{counted}"


def _distinct(values: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(value for value in values if value))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
