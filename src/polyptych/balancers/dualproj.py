"""DualProj: the mean gradient, projected onto the directions in which no task gets worse.

Source: Lopez-Paz and Ranzato, NeurIPS 2017, arXiv 1706.08840
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.balancers import _solvers as solvers
from polyptych.balancers._gradients import GramBalancer
from polyptych.balancers._task_numbers import check_number


class DualProj(GramBalancer):
    """``P(mean_t g_t)``, where ``P(x)`` is the vector nearest to x that has no negative product with any gradient.

    The weights are ``argmin_{v >= 1 / K} v^T G v``. The paper projects the gradient of a new task against those of
    tasks learned before; for the mean of tasks that are learned together the method has its name from torchjd. Like
    there, G is divided by its trace and ``ridge`` is added to its diagonal.

    Scale: the mean where it conflicts with no task, more where it does. Heads get unweighted gradients. Cost per step:
    by level.

    Raises:
        InputError: a ridge below 1e-10, where the problem is no longer well posed.
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
        ridged = gram / gram.trace().clamp(min=solvers.TINY) + self.ridge * torch.eye(len(gram), dtype=gram.dtype)
        return solvers.project_to_dual_cone(ridged, torch.full_like(losses, 1 / len(losses)))
