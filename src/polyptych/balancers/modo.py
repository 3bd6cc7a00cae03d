"""MoDo: MGDA by small updates of the weights, from products of gradients of two batches, which noise does not bias.

Source: Chen, Fernando, Ying and Chen, NeurIPS 2023, arXiv 2305.20057
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from polyptych import devices
from polyptych.balancers import _solvers as solvers
from polyptych.balancers._engine import product_of_batches
from polyptych.balancers._gradients import JacobianBalancer
from polyptych.balancers._task_numbers import check_number, numbers


class MoDo(JacobianBalancer):
    """``w <- P(w - gamma (J J'^T w + rho w))`` with P the projection onto the simplex; the step is
    ``sum_t w_t g_t``.

    The paper takes J, J' and g from three independent batches. ``independent`` does so: micro-batches go to the three
    in turn, so that ``--accumulate`` must be a multiple of 3 and memory holds three times the rows. Heads then get the
    mean gradient of all, as in LibMTL. The default is one batch for everything, which costs as much as other methods;
    the product of a noisy gradient with itself is then too large by the variance of the noise.

    gamma and rho are LibMTL's; torchjd has 0.1 for both. A task without a label in a step keeps its weight; the others
    share the rest.

    Scale: the weights sum to 1. Their updates depend on the scale of the gradients. Heads get unweighted gradients.
    Cost per step: that of the level ``parameters``.

    Raises:
        InputError: an option out of range.
    """

    tuned = ("gamma", (1e-2, 1e-4))

    @dataclass(frozen=True, kw_only=True)
    class Config(JacobianBalancer.Config):
        weight_heads: bool = False
        """Apply task weights also to the parameters that belong to one task alone."""
        batches: Literal["one", "independent"] = "one"
        """One batch for everything, or three parts of every step."""
        gamma: float = 1e-3
        """Step size of the weights."""
        rho: float = 0.1
        """Strength of the pull toward equal weights."""

    config: Config
    weights: Tensor

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        check_number("gamma", config.gamma, config.gamma > 0, "a number above 0")
        check_number("rho", config.rho, config.rho >= 0, "a number of at least 0")
        self.splits = 3 if config.batches == "independent" else 1
        self.register_buffer("weights", numbers(self.tasks, 1 / max(len(self.tasks), 1)))

    def ask(self, rows: Float[Tensor, "*s t p"], losses: Float[Tensor, " t"], tasks: tuple[str, ...]) -> Tensor:
        return product_of_batches(rows)

    def combine(self, rows: Float[Tensor, "*s t p"], losses: Float[Tensor, " t"],
                tasks: tuple[str, ...]) -> tuple[Float[Tensor, " p"], Float[Tensor, " t"]]:
        here = self.positions(tasks)
        last = rows[-1] if self.splits > 1 else rows
        product = self.splits**2 * self.answer.view(len(tasks), -1)  # losses are scaled for the whole batch
        before, total = solvers.shares(self.weights[here]), self.weights[here].sum()
        moved = before - self.config.gamma * (product @ before + self.config.rho * before)
        weights = solvers.project_to_simplex(moved)
        self.weights[here] = total * weights
        return self.splits * (devices.sent(weights, rows.device, rows.dtype) @ last), weights
