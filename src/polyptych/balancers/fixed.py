"""Constant weights: each task's usual one, or numbers of your own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from polyptych import devices
from polyptych.balancers._weighing import LossBalancer
from polyptych.errors import InputError, nearest


class Fixed(LossBalancer):
    """``sum_t weight_t * loss_t``, one backward pass.

    Raises:
        InputError: a weight for a task that the run does not have, a negative or non-finite weight, or no weight
            above zero.
    """

    needs_losses = False

    @dataclass(frozen=True, kw_only=True)
    class Config(LossBalancer.Config):
        weights: dict[str, float] = field(default_factory=dict)
        """Weight of each task; tasks that are not named keep their usual weight (normals 10, boundaries 50, ...)."""

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        for task, weight in config.weights.items():
            if task not in standard_weights:
                raise InputError("balancer.weights", f"a weight for '{task}'", nearest(task, standard_weights),
                                 "name a task of this run")
            if not (weight >= 0 and math.isfinite(weight)):
                raise InputError(f"balancer.weights of '{task}'", str(weight), "a finite number of at least 0",
                                 "change the weight")
        self.weights = {**standard_weights, **config.weights}
        if not any(self.weights.values()):
            raise InputError("balancer.weights", "0 for every task", "a task with a weight above 0",
                             "raise a weight, because nothing would be learned")

    @classmethod
    def tuned_option(cls, config: Config, standard_weights: Mapping[str, float]) -> tuple[str, tuple[Any, ...]]:
        """Every task in turn three times as important, then a third."""
        now = {**standard_weights, **config.weights}
        return "weights", tuple({**now, name: float(f"{factor * weight:.3g}")}
                                for factor in (3, 1 / 3) for name, weight in now.items() if weight)

    def weigh(self, losses: Float[Tensor, " t"], tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        return devices.sent([self.weights[task] for task in tasks], losses.device, losses.dtype)
