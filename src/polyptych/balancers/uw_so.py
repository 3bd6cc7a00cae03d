"""Soft optimal uncertainty weighting: softmax of the inverse losses, with a temperature.

Source: Kirchdorfer et al., GCPR 2024, arXiv 2408.07985
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.balancers._task_numbers import SMALLEST, check_number, numbers
from polyptych.balancers._weighing import LossBalancer


class UWSO(LossBalancer):
    """``w = softmax(1 / (T l))``, where l are the losses and T is the temperature.

    Minimizing the uncertainty-weighted total over the uncertainties gives weights of ``1 / l`` (UW-O); the softmax
    bounds them. The paper tunes T for every dataset on a grid from 1 to 100 (quoted from memory); the right T
    depends on the scale of the losses. A loss near 0 would take all the weight, so here, unlike in the paper, l is a
    moving average. ``--balancer.smoothing 0`` is the paper's form.

    Scale: the weights sum to 1. Heads get weighted gradients. Cost per step: one backward pass.

    Raises:
        InputError: a temperature that is not above 0, or a smoothing outside [0, 1).
    """

    tuned = ("temperature", (1.0, 30.0))

    @dataclass(frozen=True, kw_only=True)
    class Config(LossBalancer.Config):
        temperature: float = 10.0
        """Softmax temperature: high values approach equal weights, low ones favor the task with the smallest loss."""
        smoothing: float = 0.9
        """Weight of the past in the moving average of the losses."""

    average: Tensor

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        check_number("temperature", config.temperature, config.temperature > 0, "a number above 0")
        check_number("smoothing", config.smoothing, 0 <= config.smoothing < 1, "a number of at least 0 and below 1")
        self.temperature, self.smoothing = config.temperature, config.smoothing
        self.register_buffer("average", numbers(self.tasks, torch.inf))

    def weigh(self, losses: Float[Tensor, " t"], tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        here, now = self.places(tasks, self.average), losses.to(self.average)
        before = self.average[here]
        average = torch.where(before.isinf(), now, torch.lerp(now, before, self.smoothing))
        self.average[here] = torch.where(now.isfinite(), average, before)  # one bad step must not spoil all others
        return (1 / (self.temperature * average.clamp(min=SMALLEST))).softmax(0).to(losses)
