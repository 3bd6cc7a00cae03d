"""Dynamic task prioritization: tasks that still score low on their own metric get more weight.

Source: Guo, Haque, Huang, Yeung and Fei-Fei, ECCV 2018
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.balancers._indicator import check_chosen, indicator
from polyptych.balancers._task_numbers import SMALLEST, check_known, check_number, numbers
from polyptych.balancers._weighing import LossBalancer

LEAST, MOST = 0.01, 0.99  # an indicator of 0 would give an infinite weight, one of 1 none at all


class DTP(LossBalancer):
    """``w_t = -(1 - k_t)^gamma log k_t``, the focal loss of a performance indicator k in (0, 1].

    The indicator is a metric of the task on the validation split that is a share, at best 1: mIoU, maxF, delta < 1.25,
    the share of normals within 11.25 degrees, odsF or F of boundaries, PCK, or top-1 accuracy, in percent as tasks
    report them. It is smoothed, ``k <- a new + (1 - a) k``, and kept within [0.01, 0.99]. Weights are 1 before the
    first validation and change after each, so ``--monitoring.validate-every`` sets the pace; with only a few
    validations, raise ``smoothing``.

    Tasks without such a metric, and all tasks with ``--balancer.signal loss``, fall back on the paper's
    ``k = min(l, l_before) / l_before`` of mean losses l in successive epochs. This indicator points the other way: a
    task that makes no progress has k near 1 and hardly any weight. A metric or loss that is not finite changes nothing.

    The paper updates k at every training step, with gamma from 1 to 2 and a from 0.1 to 1 (quoted from memory); there
    is no published code.

    Scale: the sum of the weights is free, and near 0 for tasks that are solved; ``normalize`` makes it K. Heads get
    weighted gradients. Cost per step: one backward pass, and no more validation than the run has.

    Raises:
        InputError: an option out of range, a metric for a task that the run does not have, a metric that the task
            does not report, or one that is not a share.
    """

    tuned = ("gamma", (2.0, 0.5))

    @dataclass(frozen=True, kw_only=True)
    class Config(LossBalancer.Config):
        gamma: float = 1.0
        """Focusing exponent: higher values emphasize difficult tasks; 0 leaves only the logarithm."""
        smoothing: float = 0.1
        """Weight of the newest indicator in its moving average (a in the paper)."""
        signal: Literal["metric", "loss"] = "metric"
        """Source of the indicators: validation metrics, or ratios of training losses."""
        metrics: dict[str, str] = field(default_factory=dict)
        """Metric for each task, which must be a percentage (default: the usual one)."""
        normalize: bool = False
        """Scale the weights to sum to the number of tasks."""

    needs_losses = False
    indicator: Tensor
    by_loss: Tensor
    last_loss: Tensor

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        check_number("gamma", config.gamma, config.gamma >= 0, "a number of at least 0")
        check_number("smoothing", config.smoothing, 0 < config.smoothing <= 1, "a number above 0 and at most 1")
        check_known("metrics", config.metrics, self.tasks)
        for task, metric in config.metrics.items():
            check_chosen(task, metric)
        self.config = config
        self.register_buffer("indicator", numbers(self.tasks, torch.inf))
        self.register_buffer("last_loss", numbers(self.tasks, torch.inf))
        self.register_buffer("by_loss", torch.full((len(self.tasks),), config.signal == "loss"))

    def on_validation(self, metrics: dict[str, dict[str, float]]) -> None:
        if self.config.signal == "metric":
            for place, task in enumerate(self.tasks):
                if task in metrics:
                    share = indicator(task, metrics[task], self.config.metrics.get(task))
                    self.by_loss[place] = share is None
                    self._update(place, math.nan if share is None else share)

    def on_epoch_end(self, losses: dict[str, float]) -> None:
        for place, task in enumerate(self.tasks):
            now, before = losses.get(task, math.nan), float(self.last_loss[place])
            if math.isfinite(now):
                if bool(self.by_loss[place]) and math.isfinite(before):
                    self._update(place, min(now, before) / max(before, SMALLEST))
                self.last_loss[place] = now

    def weigh(self, losses: Float[Tensor, " t"], tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        found = self.indicator[self.places(tasks, self.indicator)]
        k = found.clamp(LEAST, MOST)
        weights = torch.where(found.isinf(), 1.0, -(1 - k) ** self.config.gamma * k.log())
        if self.config.normalize:
            weights = len(tasks) * weights / weights.sum()
        return weights.to(losses)

    def _update(self, place: int, new: float) -> None:
        if math.isfinite(new):
            old = float(self.indicator[place])
            a = self.config.smoothing if math.isfinite(old) else 1.0
            self.indicator[place] = a * min(max(new, LEAST), MOST) + (1 - a) * (old if a < 1 else 0.0)
