"""How good a task is by its own metric, as a share from 0 to 1."""

from __future__ import annotations

from polyptych.errors import InputError, nearest

WHOLE = {"mIoU": 100.0, "maxF": 100.0, "delta1": 100.0, "within_11.25": 100.0, "odsF": 1.0, "F": 100.0, "PCK": 100.0,
         "top1": 100.0}
"""Metrics that are shares, by falling preference, and their value where all is right."""


def indicator(task: str, metrics: dict[str, float], chosen: str | None = None) -> float | None:
    """A metric of a task as a share from 0 to 1, NaN where it is not defined, or None if none of its metrics is one.

    Args:
        task: for messages.
        metrics: all of the task, by name.
        chosen: which one to take, in percent if it is none of the customary ones.

    Raises:
        InputError: the task does not report the chosen metric, or its value is not a share.
    """
    if chosen is not None and chosen not in metrics:
        raise InputError("balancer.metrics", f"'{chosen}' for '{task}'", nearest(chosen, metrics),
                         "name a metric that the task reports")
    name = chosen or next((name for name in WHOLE if name in metrics), None)
    if name is None:
        return None
    share = metrics[name] / WHOLE.get(name, 100.0)
    if share < 0 or share > 1:
        raise InputError("balancer.metrics", f"'{name}' of '{task}' at {metrics[name]:g}",
                         "a metric that is a share and grows as predictions get better",
                         "choose another metric, or --balancer.signal loss")
    return share
