"""One number for many: the aggregates over tasks and metrics that papers report.

They differ in what they average and in their sign, so that each has its name. Both are relative to a reference (mostly
the single-task networks) and refuse to mix protocols. Directions come from the metrics.

=========================  ==========================================================  ================
aggregate                  mean over                                                   better
=========================  ==========================================================  ================
``delta_mtl``              tasks, one headline metric each                             higher, percent
``delta_m``                all metrics alike, so that a task weighs as its number      lower, percent
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
    """The scores of one method.

    Attributes:
        name: name of the method, for messages.
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
                raise InputError(f"{metric} of {task}", "no direction", "to know whether higher is better",
                                 "take the directions of the metric or of the protocol")
        found[task] = statistics.deltas(values, reference.values[task], higher_is_better[task])
    return found


def delta_mtl(scores: Scores, reference: Scores, higher_is_better: Directions, headlines: Mapping[str, str]) -> float:
    """Mean over tasks of the gain of one headline metric each, in percent; higher is better (Maninis, Radosavovic,
    Kokkinos, CVPR 2019, arXiv 1904.08918, who print its negative; Vandenhende et al., TPAMI 2021, arXiv 2004.13379).

    Args:
        headlines: the headline metric of each task.

    Raises:
        InputError: as :func:`gains`; or a headline is missing.
    """
    for task, metric in headlines.items():
        if metric not in scores.values.get(task, {}):
            raise InputError(f"scores of {scores.name}", f"no {metric} of {task}", "the headline metric of every task",
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


def refuse_mixed(rows: Sequence[Scores]) -> None:
    """Refuse to aggregate numbers of different protocols.

    Raises:
        InputError: the protocols differ; the message names the first row that differs.
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
