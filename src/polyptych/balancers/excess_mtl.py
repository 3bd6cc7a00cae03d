"""ExcessMTL: weight goes to tasks that are far from their best loss, not to those whose loss is high because of noise.

Source: He, Zhou, Zhang, Yao, Hu and Zhao, ICML 2024, arXiv 2402.02009
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych import devices
from polyptych.balancers import _solvers as solvers
from polyptych.balancers._memory import RememberingBalancer
from polyptych.balancers._task_numbers import check_number, numbers

EPSILON = 1e-7


class ExcessMTL(RememberingBalancer):
    """The excess risk of a task is estimated as ``e_t = sum_p g_tp^2 / h_tp``, where ``h_tp^2`` is 1e-7 plus the sum of
    ``g_tp^2`` over all steps so far. With e divided by its initial value, ``w_t <- w_t exp(eta e_t)``, scaled to sum to
    K. The step is ``sum_t w_t g_t``.

    The initial value is the mean over a task's first ``warmup`` steps, during which its weight stays constant: three
    epochs in the paper. torchjd (and, it says, the authors' code) has no warm-up and moves the weights in the first
    step by the unscaled excess. h only grows, so the signal fades as training goes on. eta is 1e-2 in LibMTL and 1 in
    torchjd. A task without a label in a step, or whose initial excess is zero, keeps its weight; the others share the
    rest.

    Scale: the weights sum to K. Heads get weighted gradients. Cost per step: that of the level ``parameters``, and
    one more row of memory per task.

    Raises:
        InputError: eta below 0, or a warm-up shorter than a step.
    """

    tuned = ("eta", (0.1, 1e-3))

    @dataclass(frozen=True, kw_only=True)
    class Config(RememberingBalancer.Config):
        eta: float = 0.01
        """Step size of the weights."""
        warmup: int = 1
        """Steps over which the initial excess is averaged."""

    weights: Tensor
    beginning: Tensor
    seen: Tensor

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        check_number("eta", config.eta, config.eta >= 0, "a number of at least 0")
        check_number("warmup", config.warmup, config.warmup >= 1, "at least 1 step")
        self.eta, self.warmup = config.eta, config.warmup
        self.register_buffer("weights", numbers(self.tasks, 1.0))
        self.register_buffer("beginning", numbers(self.tasks))
        self.register_buffer("seen", torch.zeros(len(self.tasks), dtype=torch.int64))  # steps in ``beginning``

    def ask(self, rows: Float[Tensor, "t p"], losses: Float[Tensor, " t"], tasks: tuple[str, ...]) -> Tensor:
        return torch.stack([self._excess(k, row) for k, row in zip(self.positions(tasks), rows, strict=True)])

    def combine(self, rows: Float[Tensor, "t p"], losses: Float[Tensor, " t"],
                tasks: tuple[str, ...]) -> tuple[Float[Tensor, " p"], Float[Tensor, " t"]]:
        here = self.positions(tasks)
        for k, row in zip(here, rows, strict=True):
            self.memory[k].add_(row.square())
        excess = self.answer
        seen, beginning, before = self.seen[here], self.beginning[here], self.weights[here]
        starting = seen < self.warmup
        beginning = torch.where(starting, (beginning * seen + excess) / (seen + 1), beginning)
        self.beginning[here], self.seen[here] = beginning, seen + starting
        weights, moving = before.clone(), (beginning > 0) & ~starting
        if moving.any():
            weights[moving] *= (self.eta * excess / beginning)[moving].softmax(0)
            weights[moving] = before[moving].sum() * solvers.shares(weights[moving])
        self.weights[here] = weights
        weights = len(here) * solvers.shares(weights)
        return devices.sent(weights, rows.device, rows.dtype) @ rows, weights

    def _excess(self, k: int, row: Float[Tensor, " p"]) -> Float[Tensor, ""]:
        squared = row.square()
        return (squared / (self.memory[k] + squared + EPSILON).sqrt()).sum()
