"""One number for many: the aggregates over tasks and metrics that papers print.

They differ in what they average and in their sign, so that each has its name. All but the rank are relative to a
reference (mostly the single-task networks); all refuse to mix protocols. Directions come from the metrics.

=========================  ==========================================================  ================
aggregate                  mean over                                                   better
=========================  ==========================================================  ================
``delta_mtl``              tasks, one headline metric each                             higher, percent
``delta_m``                all metrics alike, so that a task weighs as its number      lower, percent
``relative_performance``   tasks, of the mean over each task's metrics                 higher, percent
``libmtl_improvement``     the same as a fraction                                      higher
``mean_rank``              metrics, of the rank among the rows of one table            lower
=========================  ==========================================================  ================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from polyptych.comparison import statistics
from polyptych.errors import InputError

Directions = Mapping[str, Mapping[str, bool]]
"""Whether higher is better, by task and metric."""


@dataclass(frozen=True)
class Scores:
    """What one method scores.

    Attributes:
        name: of the method, for messages.
        protocol: id of the protocol that the numbers belong to.
        values: by task and metric.
    """

    name: str
    protocol: str
    values: Mapping[str, Mapping[str, float]]


def gains(scores: Scores, reference: Scores, higher_is_better: Directions) -> dict[str, dict[str, float]]:
    """The relative gain over the reference in percent by task and metric, positive where better.

    Raises:
        InputError: the protocols differ, or a number or a direction is missing; the message names it.
    """
    refuse_mixed([scores, reference])
    found = {}
    for task, values in scores.values.items():
        for metric in values:
            if metric not in reference.values.get(task, {}):
                raise InputError(f"reference {reference.name}", f"no {metric} of {task}",
                                 f"every number of {scores.name}", "add it, or leave the metric out")
            if metric not in higher_is_better.get(task, {}):
                raise InputError(f"{metric} of {task}", "no direction", "whether higher is better",
                                 "take the directions of the metric or of the protocol")
        found[task] = statistics.deltas(values, reference.values[task], higher_is_better[task])
    return found


def delta_mtl(scores: Scores, reference: Scores, higher_is_better: Directions, headlines: Mapping[str, str]) -> float:
    """Mean over tasks of the gain of one headline metric each, in percent; higher is better (Maninis, Radosavovic,
    Kokkinos, CVPR 2019, arXiv 1904.08918, who print its negative; Vandenhende et al., TPAMI 2021, arXiv 2004.13379).

    Args:
        headlines: the metric that stands for each task.

    Raises:
        InputError: as :func:`gains`; or a headline is missing.
    """
    for task, metric in headlines.items():
        if metric not in scores.values.get(task, {}):
            raise InputError(f"scores of {scores.name}", f"no {metric} of {task}", "the headline of every task",
                             "add it")
    by_task = gains(_only(scores, headlines), _only(reference, headlines), higher_is_better)
    return _mean([by_task[task][metric] for task, metric in headlines.items()])


def delta_m(scores: Scores, reference: Scores, higher_is_better: Directions) -> float:
    """Mean drop over all single metrics, in percent; **lower is better** (Liu et al., NeurIPS 2021, arXiv 2110.14048,
    and the work that follows it). With the nine metrics of NYUv2 the normals weigh 5/9.

    Raises:
        InputError: as :func:`gains`.
    """
    return -_mean([gain for task in gains(scores, reference, higher_is_better).values() for gain in task.values()])


def relative_performance(scores: Scores, reference: Scores, higher_is_better: Directions) -> dict[str, float]:
    """Mean gain over each task's metrics in percent, higher is better, by task; the overall value is the mean of these
    (AdaShare: Sun et al., NeurIPS 2020, arXiv 1911.12423; AutoMTL: Zhang, Liu, Guan, NeurIPS 2022, arXiv 2110.13076).
    Their references differ, so that the values of the two papers cannot be compared.

    Raises:
        InputError: as :func:`gains`.
    """
    return {task: _mean(list(values.values())) for task, values in gains(scores, reference, higher_is_better).items()}


def overall_performance(scores: Scores, reference: Scores, higher_is_better: Directions) -> float:
    """The mean over tasks of :func:`relative_performance`, in percent, higher is better."""
    return _mean(list(relative_performance(scores, reference, higher_is_better).values()))


def libmtl_improvement(scores: Scores, base: Scores, higher_is_better: Directions) -> float:
    """As :func:`overall_performance`, but a fraction: the quantity by which LibMTL picks an epoch (Lin, Zhang, JMLR
    2023, arXiv 2203.14338). Its base is by default the first epoch of the same run; such values say nothing across
    runs.

    Raises:
        InputError: as :func:`gains`.
    """
    return overall_performance(scores, base, higher_is_better) / 100


def mean_rank(rows: Sequence[Scores], higher_is_better: Directions) -> list[float]:
    """The rank of every row among these rows (1 is best, ties share), averaged over the metrics that have a direction.
    It changes with the rows and is never compared across tables. NaN for a row that lacks a number.

    Raises:
        InputError: the protocols differ.
    """
    refuse_mixed(rows)
    directions = {f"{task}/{metric}": higher for task, metrics in higher_is_better.items()
                  for metric, higher in metrics.items()}
    flat = [{f"{task}/{metric}": value for task, values in row.values.items() for metric, value in values.items()}
            for row in rows]
    return statistics.mean_ranks(flat, directions)


def refuse_mixed(rows: Sequence[Scores]) -> None:
    """Numbers of different protocols never enter one aggregate.

    Raises:
        InputError: naming the first row that differs.
    """
    for row in rows[1:]:
        if row.protocol != rows[0].protocol:
            raise InputError(f"scores of {row.name}", f"numbers of protocol {row.protocol}",
                             f"protocol {rows[0].protocol}, that of {rows[0].name}",
                             "compare numbers of one protocol only")


def _only(scores: Scores, headlines: Mapping[str, str]) -> Scores:
    values = {task: {metric: scores.values[task][metric]} for task, metric in headlines.items()
              if metric in scores.values.get(task, {})}
    return Scores(scores.name, scores.protocol, values)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
