"""Numbers that a balancer keeps for every task of the run, where a step may concern only some of the tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from polyptych.errors import InputError, nearest

SMALLEST = 1e-8  # losses are taken as at least this where they are divided by or their logarithm is taken


def numbers(tasks: Iterable[str], value: float = 0.0) -> Tensor:
    """One number per task (t), in float64: it is little, and a ratio of long averages keeps its digits. Infinity stands
    for "not known yet" (it equals itself, unlike NaN, so that states can be compared)."""
    return torch.full((len(tuple(tasks)),), value, dtype=torch.float64)


def check_known(option: str, named: Iterable[str], tasks: tuple[str, ...]) -> None:
    """Refuse an option that names a task which the run does not have.

    Raises:
        InputError: naming the option and the task.
    """
    for task in named:
        if task not in tasks:
            raise InputError(f"balancer.{option}", f"an entry for '{task}'", nearest(task, tasks),
                             "name a task of this run")


def check_number(option: str, value: float, right: bool, needs: str) -> None:
    """Refuse a number that is not right, NaN and infinity included.

    Raises:
        InputError: naming the option, the number and what it needs to be.
    """
    if not (right and math.isfinite(value)):
        raise InputError(f"balancer.{option}", f"{value:g}", needs, "change the option")
