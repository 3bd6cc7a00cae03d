"""How well a task does by its own metric, as a share from 0 to 1."""

from __future__ import annotations

import math

from polyptych.errors import InputError, nearest

SHARES = ("mIoU", "maxF", "delta1", "within_11.25", "odsF", "F", "PCK", "top1")
"""Metrics that are shares, in percent as tasks report them; the first of these that a task has is its indicator."""

ROUNDING = 1e-9  # sums over pixels may put a perfect prediction this far above 1
NEEDED = "a metric that is a share and rises as predictions improve"


def indicator(task: str, metrics: dict[str, float], chosen: str | None = None) -> float | None:
    """A metric of a task as a share from 0 to 1; NaN where it is undefined, None if no metric of the task is a share.

    Args:
        task: its name, for messages.
        metrics: all metrics of the task, by name; shares are in percent.
        chosen: the metric to take (default: the first of :data:`SHARES` that the task has).

    Raises:
        InputError: the task does not report the chosen metric, or its value is not a share.
    """
    if chosen is not None and chosen not in metrics:
        raise InputError("balancer.metrics", f"'{chosen}' for '{task}'", nearest(chosen, metrics),
                         "name a metric that the task reports")
    name = chosen or next((name for name in SHARES if name in metrics), None)
    if name is None:
        return None
    share = metrics[name] / 100
    if share < -ROUNDING or share > 1 + ROUNDING:
        raise InputError("balancer.metrics", f"'{name}' of '{task}' at {metrics[name]:g}",
                         NEEDED, "choose another metric, or --balancer.signal loss")
    return share if math.isnan(share) else min(max(share, 0.0), 1.0)


def check_chosen(task: str, chosen: str) -> None:
    """Refuse a metric that falls as predictions improve. Its value does not give it away: an RMSE of 0.6 m looks like a
    share.

    Raises:
        InputError: some kind of task reports the metric as an error, for which lower is better.
    """
    from polyptych.tasks._base import CATALOG  # here: other balancers need no tasks

    if any(CATALOG.load(kind).higher_is_better.get(chosen) is False for kind in CATALOG.names()):
        raise InputError("balancer.metrics", f"'{chosen}' for '{task}', an error", NEEDED,
                         f"choose another metric (the usual ones are {', '.join(SHARES)}), or --balancer.signal loss")
