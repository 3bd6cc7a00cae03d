"""How good a task is by its own metric, as a share from 0 to 1."""

from __future__ import annotations

import math

from polyptych.errors import InputError, nearest

SHARES = ("mIoU", "maxF", "delta1", "within_11.25", "odsF", "F", "PCK", "top1")
"""Metrics that are shares in percent, as all shares that tasks report, by falling preference."""

ROUNDING = 1e-9  # of a perfect prediction's measures, which are sums over pixels
NEEDED = "a metric that is a share and grows as predictions get better"


def indicator(task: str, metrics: dict[str, float], chosen: str | None = None) -> float | None:
    """A metric of a task as a share from 0 to 1, NaN where it is not defined, or None if none of its metrics is one.

    Args:
        task: for messages.
        metrics: all of the task, by name.
        chosen: which one to take, in percent.

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
    """Refuse a metric that falls as predictions get better. Its value may look like a share: an RMSE of 0.6 m.

    Raises:
        InputError: some kind of task reports it as an error.
    """
    from polyptych.tasks._base import CATALOG  # here: other balancers need no tasks

    if any(CATALOG.load(kind).higher_is_better.get(chosen) is False for kind in CATALOG.names()):
        raise InputError("balancer.metrics", f"'{chosen}' for '{task}', an error", NEEDED,
                         f"choose another metric, the usual ones are {', '.join(SHARES)}; or --balancer.signal loss")
