"""IMTL: a step with equal projections onto all tasks' gradients, on losses of equal scale.

Source: Liu et al., ICLR 2021, openreview IMPnRXEWpvr
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.balancers import _solvers as solvers
from polyptych.balancers._adam import TaskAdam
from polyptych.balancers._gradients import GramBalancer, Level
from polyptych.balancers._task_numbers import check_number, numbers
from polyptych.errors import InputError

RIDGE = 1e-8  # added to the diagonal of the cosines: linearly dependent directions have no unique solution
WIDEST = 10.0  # bound of |s|: while a loss stays at zero, its s would grow without end
LARGEST = 100.0  # largest weight, in absolute value; where the equations ask for more, they are ill-conditioned


class IMTL(GramBalancer):
    """IMTL-G: weights that sum to 1, so that ``g = sum_t w_t g_t`` has the same projection onto every gradient's
    direction ``g_t / |g_t|``. In closed form ``w_t ~ v_t / |g_t|`` with ``C v = 1`` and C the matrix of cosines.

    IMTL-L (``scale_losses``): losses count as ``exp(s_t) loss_t - s_t`` with learned s; the minimum over s is where
    every ``exp(s_t) loss_t`` is 1. Here s is updated by Adam with a learning rate of its own, and stays between -10 and
    10; in the paper it is trained with the network. IMTL-G acts on the gradients of the scaled losses. Without
    ``balance_gradients`` only IMTL-L remains: the weight of task t is ``exp(s_t)``, and no gradients are compared.

    Weights may be negative, as in the paper. For nearly dependent gradients they may be huge, or their sum may not be
    positive (scaling it to 1 would make all losses rise): then weights are ``~ 1 / |g_t|``, which also sum to 1. A task
    whose gradient is zero gets no weight from IMTL-G. LibMTL has the two parts only together, and stops with an error
    if gradients are linearly dependent.

    Scale: the weights sum to 1, times ``exp(s_t)``; that of IMTL-L alone is free. Heads get weighted gradients. Cost
    per step: by level; of IMTL-L alone, one backward pass.

    Raises:
        InputError: a learning rate that is not above 0, or neither of the two parts.
    """

    tuned = ("learning_rate", (1e-2, 1e-4))
    preferring = "never"

    @dataclass(frozen=True, kw_only=True)
    class Config(GramBalancer.Config):
        level: Level = "representation"
        """Gradients of the shared features, of all shared parameters, or of the last shared layer."""
        scale_losses: bool = True
        """Learn the scale of each loss (IMTL-L)."""
        balance_gradients: bool = True
        """Make the step's projections onto all gradients equal (IMTL-G)."""
        learning_rate: float = 1e-3
        """Learning rate of the scales."""

    s: Tensor

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        check_number("learning_rate", config.learning_rate, config.learning_rate > 0, "a number above 0")
        if not (config.scale_losses or config.balance_gradients):
            raise InputError("balancer.balance_gradients", "off, as is scale_losses", "at least one part of IMTL",
                             "leave one of them on, or choose --balancer equal")
        self.scale_losses, self.needs_gram = config.scale_losses, config.balance_gradients
        self.adam = TaskAdam(len(self.tasks), learning_rate=config.learning_rate)
        self.register_buffer("s", numbers(self.tasks))

    def promised(self, count: int) -> float | None:
        return super().promised(count) or (None if self.scale_losses else 1.0)

    def solve(self, gram: Float[Tensor, "t t"], losses: Float[Tensor, " t"],
              tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        if not self.scale_losses:
            return solvers.where_present(gram, 0, impartial)
        here = self.positions(tasks)
        factors = self.s[here].exp()
        weights = factors
        if self.needs_gram:
            weights = factors * solvers.where_present(gram * factors * factors[:, None], 0, impartial)
        gradient, moving = torch.zeros_like(self.s), torch.zeros_like(self.s, dtype=torch.bool)
        gradient[here], moving[here] = factors * losses - 1, True
        self.adam.step(self.s, gradient, moving)
        self.s.clamp_(-WIDEST, WIDEST)
        return weights


def impartial(gram: Float[Tensor, "t t"]) -> Float[Tensor, " t"]:
    """The weights of IMTL-G; all tasks must have a gradient."""
    cosine, lengths = solvers.cosines(gram)
    ridged = cosine + RIDGE * torch.eye(len(gram), dtype=gram.dtype)
    weights = torch.linalg.solve(ridged, torch.ones_like(lengths)) / lengths
    total = weights.sum()
    if not (total > 0 and float((weights / total).abs().max()) <= LARGEST):
        weights = 1 / lengths
    return weights / weights.sum()
