"""CAGrad: the step that improves the worst task most, among those near the mean gradient.

Source: Liu, Liu, Jin, Stone and Liu, NeurIPS 2021, arXiv 2110.14048
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.balancers import _solvers as solvers
from polyptych.balancers._gradients import GramBalancer
from polyptych.balancers._task_numbers import check_number


class CAGrad(GramBalancer):
    """``max_d min_t g_t . d`` subject to ``|d - g_0| <= c |g_0|``, with g_0 the mean gradient. The dual gives ``d = g_0
    + c |g_0| g_w / |g_w|``, where ``g_w = sum_t w_t g_t`` and w on the simplex minimizes ``g_w . g_0 + c |g_0| |g_w|``.

    The step is ``K d / (1 + c^2)``: the paper's rescaling, and the factor by which the authors' code makes it
    comparable with the sum of losses. As in that code, the shared gradient is clipped to norm 1. The authors' solver
    (SLSQP on unscaled gradients) has a tolerance that depends on the scale of the gradients; this one is exact.
    LibMTL has c = 0.5, no factor K, and no clipping.

    Scale: K, times ``(1 + c |g_0| / |g_w|) / (1 + c^2)``. Heads get unweighted gradients. Cost per step: by level.

    Raises:
        InputError: c outside [0, 1): from 1 on, the method may end at any Pareto stationary point.
    """

    tuned = ("c", (0.2, 0.6))

    @dataclass(frozen=True, kw_only=True)
    class Config(GramBalancer.Config):
        weight_heads: bool = False
        """Apply task weights also to the parameters that belong to one task alone."""
        clip_shared: float = 1.0
        """Maximum norm of the gradient of the shared parameters (0: no clipping)."""
        c: float = 0.4
        """Radius around the mean gradient, as a fraction of its length (0: the mean itself)."""

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        check_number("c", config.c, 0 <= config.c < 1, "a number of at least 0 and below 1")
        self.c = config.c

    def solve(self, gram: Float[Tensor, "t t"], losses: Float[Tensor, " t"],
              tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        equal = torch.ones_like(losses)
        if self.c == 0 or float(gram.mean()) <= solvers.TINY:  # gram.mean() is |g_0|^2: the ball is a point
            return equal
        weights, ratio = solvers.conflict_averse_point(gram, self.c)  # ratio = |g_w| / (c |g_0|)
        return (equal + len(equal) * weights / ratio) / (1 + self.c**2)
