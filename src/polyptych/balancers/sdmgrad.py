"""SDMGrad: a direction between MGDA's and the mean, from independently sampled gradients.

Source: Xiao, Ban and Ji, NeurIPS 2023, arXiv 2305.18409
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych import devices
from polyptych.balancers import _solvers as solvers
from polyptych.balancers._engine import product_of_batches
from polyptych.balancers._gradients import JacobianBalancer
from polyptych.balancers._task_numbers import check_number, numbers


class SDMGrad(JacobianBalancer):
    """``w`` on the simplex reduces ``|sum_t (w_t + lambda / K) g_t|^2`` by 20 steps of projected gradient descent with
    momentum, on ``A = J J'^T`` divided by the square of the mean gradient norm, starting from the w of the last step.
    The step is ``K sum_t (w_t + lambda / K) g_t / (1 + lambda)``, with the factor K of the authors' code.

    The product of a noisy gradient with itself is too large by the variance of the noise; hence the paper takes J, J'
    and g from three batches. The published code means to, but its three buffers are the same one, so published numbers
    come from one batch: ``published``, the default, which costs as much as other methods. ``independent`` is the
    paper's version: micro-batches go to the three batches in turn, so that ``--accumulate`` must be a multiple of 3 and
    memory holds three times the rows; heads get the mean gradient of all of them (in the published code, the sum).

    Scale: the weights sum to K. Heads get unweighted gradients. Cost per step: that of the level ``parameters``.

    Raises:
        InputError: an option out of range.
    """

    tuned = ("pull", (0.1, 1.0))

    @dataclass(frozen=True, kw_only=True)
    class Config(JacobianBalancer.Config):
        weight_heads: bool = False
        """Apply task weights also to the parameters that belong to one task alone."""
        batches: Literal["published", "independent"] = "published"
        """One batch for everything, or three parts of every step."""
        pull: float = 0.3
        """Strength of the pull toward the mean gradient (lambda in the paper)."""
        learning_rate: float = 10.0
        """Step size of the weights."""
        momentum: float = 0.5
        """Momentum of the weight updates; it restarts at every step of the network."""
        iterations: int = 20
        """Updates of the weights at every step of the network."""

    config: Config
    weights: Tensor

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        check_number("pull", config.pull, config.pull >= 0, "a number of at least 0")
        check_number("learning_rate", config.learning_rate, config.learning_rate > 0, "a number above 0")
        check_number("momentum", config.momentum, 0 <= config.momentum < 1, "a number of at least 0 and below 1")
        check_number("iterations", config.iterations, config.iterations >= 1, "at least 1")
        self.splits = 3 if config.batches == "independent" else 1
        self.register_buffer("weights", numbers(self.tasks, 1 / max(len(self.tasks), 1)))

    def ask(self, rows: Float[Tensor, "*s t p"], losses: Float[Tensor, " t"], tasks: tuple[str, ...]) -> Tensor:
        return product_of_batches(rows)

    def combine(self, rows: Float[Tensor, "*s t p"], losses: Float[Tensor, " t"],
                tasks: tuple[str, ...]) -> tuple[Float[Tensor, " p"], Float[Tensor, " t"]]:
        size, here, pull = len(tasks), self.positions(tasks), self.config.pull
        last = rows[-1] if self.splits > 1 else rows
        found = self._descend(self.answer.view(size, size), solvers.shares(self.weights[here]))
        self.weights[here] = self.weights[here].sum() * found
        weights = (size * found + pull) / (1 + pull)
        # Losses are scaled for the whole batch; a part has a third of it.
        return self.splits * (devices.sent(weights, rows.device, rows.dtype) @ last), weights

    def _descend(self, product: Float[Tensor, "t t"], weights: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
        # With independent batches, the product of a task's gradients may be negative even on the diagonal.
        norm = product.diagonal().clamp(min=0).sqrt().mean()
        if norm == 0:
            return weights
        product, velocity = product / norm**2, torch.zeros_like(weights)
        for _ in range(self.config.iterations):
            velocity = self.config.momentum * velocity + product @ (weights + self.config.pull / len(weights))
            weights = solvers.project_to_simplex(weights - self.config.learning_rate * velocity)
        return weights
