"""Numbers that a balancer keeps for every task of the run, although a step may involve only some of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from polyptych.errors import InputError, nearest

SMALLEST = 1e-8  # the least value of a loss in a quotient or a logarithm


def numbers(tasks: Iterable[str], value: float = 0.0) -> Tensor:
    """One number per task (t), in float64, which costs little and keeps ratios of long averages precise. Infinity means
    "not known yet"; unlike NaN it equals itself, so that states can be compared."""
    return torch.full((len(tuple(tasks)),), value, dtype=torch.float64)


def check_known(option: str, named: Iterable[str], tasks: tuple[str, ...]) -> None:
    """Refuse an option that names a task the run does not have.

    Raises:
        InputError: naming the option and the task.
    """
    for task in named:
        if task not in tasks:
            raise InputError(f"balancer.{option}", f"an entry for '{task}'", nearest(task, tasks),
                             "name a task of this run")


def check_positive(option: str, values: Mapping[str, float], tasks: tuple[str, ...]) -> None:
    """Refuse an option that has, for any task, a number that is not above 0, or that names a task the run does not
    have.

    Raises:
        InputError: naming the option, the task, and the number.
    """
    check_known(option, values, tasks)
    for task, value in values.items():
        check_number(f"{option} of '{task}'", value, value > 0, "a number above 0")


def check_number(option: str, value: float, right: bool, needs: str) -> None:
    """Refuse a number that is out of range, NaN, or infinite.

    Raises:
        InputError: naming the option, the number, and the requirement.
    """
    if not (right and math.isfinite(value)):
        raise InputError(f"balancer.{option}", f"{value:g}", needs, "change the option")
