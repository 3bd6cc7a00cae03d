"""MoCo: MGDA for noisy gradients, with averaged gradients and small updates of the weights.

Source: Fernando et al., ICLR 2023, arXiv 2210.12624
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.balancers import _solvers as solvers
from polyptych.balancers._memory import RememberingBalancer
from polyptych.balancers._task_numbers import check_number, numbers


class MoCo(RememberingBalancer):
    """``y_t <- y_t - b (y_t - g_t)``, then ``w <- P(w - c (Y Y^T + rho) w)`` with P the projection onto the simplex;
    the step is ``sum_t w_t y_t``. b and c are ``beta`` and ``gamma`` over ``step^decay``.

    Defaults are those of LibMTL, which has the authors' code; its NYUv2 runs use beta 0.99. That code also replaces
    ``g_t`` by ``loss_t g_t / |g_t|`` (``normalize``) and the projection by a softmax (``onto``), which the paper does
    not have. A task without a label in a step keeps its average and its weight; the others share the rest.

    Scale: the weights sum to 1. Their updates depend on the scale of the gradients. Heads get unweighted gradients.
    Cost per step: that of the level ``parameters``, and one more row of memory per task.

    Raises:
        InputError: beta outside (0, 1], or another number below 0.
    """

    tuned = ("gamma", (1.0, 0.01))

    @dataclass(frozen=True, kw_only=True)
    class Config(RememberingBalancer.Config):
        weight_heads: bool = False
        """Apply task weights also to the parameters that belong to one task alone."""
        beta: float = 0.5
        """How fast the average gradients adapt at the first step."""
        gamma: float = 0.1
        """Step size of the weights at the first step."""
        decay: float = 0.5
        """How fast both decay with the step number."""
        rho: float = 0.0
        """Strength of the pull toward equal weights."""
        normalize: bool = False
        """Scale each gradient to the length of its loss."""
        onto: Literal["simplex", "softmax"] = "simplex"
        """How the weights are made to sum to 1."""

    config: Config
    weights: Tensor

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        check_number("beta", config.beta, 0 < config.beta <= 1, "a number above 0, and at most 1")
        for name in ("gamma", "decay", "rho"):
            value = getattr(config, name)
            check_number(name, value, value >= 0, "a number of at least 0")
        self.register_buffer("weights", numbers(self.tasks, 1 / max(len(self.tasks), 1)))

    def combine(self, rows: Float[Tensor, "t p"], losses: Float[Tensor, " t"],
                tasks: tuple[str, ...]) -> tuple[Float[Tensor, " p"], Float[Tensor, " t"]]:
        config, here, slower = self.config, self.positions(tasks), (self.steps + 1) ** self.config.decay
        for k, row, loss in zip(here, rows, losses.tolist(), strict=True):
            size = loss / max(float(row.norm()), 1e-30) if config.normalize else 1.0
            self.memory[k].lerp_(row * size, config.beta / slower)
        before, total = solvers.shares(self.weights[here]), self.weights[here].sum()
        inner = self.remembered_gram(tasks) + config.rho * torch.eye(len(here), dtype=before.dtype)
        moved = before - config.gamma / slower * (inner @ before)
        weights = solvers.project_to_simplex(moved) if config.onto == "simplex" else moved.softmax(0)
        self.weights[here] = total * weights
        return self.weighed_memory(weights, tasks), weights
