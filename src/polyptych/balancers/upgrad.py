"""UPGrad: each gradient is projected onto the directions in which no task gets worse, and the projections are averaged.

Source: Quinton and Rey, 2024, arXiv 2406.16232
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.balancers import _solvers as solvers
from polyptych.balancers._gradients import GramBalancer
from polyptych.balancers._task_numbers import check_number


class UPGrad(GramBalancer):
    """``sum_t P(g_t / K)``, where ``P(x)`` is the vector nearest to x that has no negative product with any gradient.

    The weights of one projection are ``argmin_{v >= u} v^T G v``, where u holds the weights of the projected vector. G
    is divided by its trace, and ``ridge`` is added to its diagonal, as in the authors' code (torchjd); these small
    problems are nonnegative least squares, solved exactly. Unlike that code, this one does not ignore tiny gradients.

    Scale: the mean where no gradients conflict, more where they do. Heads get unweighted gradients. Cost per step: by
    level.

    Raises:
        InputError: a ridge below 1e-10, where the problem is ill-conditioned.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(GramBalancer.Config):
        weight_heads: bool = False
        """Apply task weights also to the parameters that belong to one task alone."""
        ridge: float = 1e-4
        """Added to the diagonal of the inner products, whose trace is 1."""

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        check_number("ridge", config.ridge, config.ridge >= solvers.RIDGE, f"a number of at least {solvers.RIDGE:g}")
        self.ridge = config.ridge

    def solve(self, gram: Float[Tensor, "t t"], losses: Float[Tensor, " t"],
              tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        one = torch.eye(len(gram), dtype=gram.dtype)
        return solvers.project_to_dual_cone(self.ridged(gram), one / len(one)).sum(0)

    def ridged(self, gram: Float[Tensor, "t t"]) -> Float[Tensor, "t t"]:
        """Inner products of trace 1, made positive definite: dependent gradients would have many solutions."""
        return gram / gram.trace().clamp(min=solvers.TINY) + self.ridge * torch.eye(len(gram), dtype=gram.dtype)
