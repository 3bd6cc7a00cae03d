"""Nash-MTL: tasks bargain over the step; the step is the Nash bargaining solution.

Source: Navon et al., ICML 2022, arXiv 2202.01017
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from polyptych.balancers import _solvers as solvers
from polyptych.balancers._gradients import GramBalancer

RIDGE = 1e-8  # of the diagonal; without it the equation has no solution for gradients that cancel exactly


class NashMTL(GramBalancer):
    """``G w = 1 / w`` with ``w > 0``, where G holds the inner products of the gradients.

    The gain of task t from the step d is ``g_t . d``; the bargaining solution maximizes the product of all gains among
    steps of one length. Its ``d = sum_t w_t g_t`` gives every task the gain ``1 / w_t``, which is the equation above.

    That w minimizes the convex function ``w^T G w / 2 - sum_t log w_t``; Newton's method finds it to rounding in a few
    dozen small linear systems. The authors run 20 rounds of a convex-concave procedure with a conic
    solver; where that fails, they keep the last weights (and LibMTL, with the solver versions it requires, silently
    uses weights of 1). ``every`` of 10 to 50 is the paper's way to save time. A task whose gradient is zero takes no
    part and has weight 1.

    Scale: the method's own: ``|sum_t w_t g_t|`` is the square root of K whatever the size of the gradients, so weights
    are inversely proportional to that size, and grow where gradients cancel. (The authors' code divides G by its
    Frobenius norm for its solver, but its constraint ``log(n w) + log(G w / n) >= 0`` multiplies by the norm again: its
    weights are the same.) As in the authors' code, the shared gradient is clipped to norm 1. This shortens every step,
    so that only the direction counts for shared parameters. Heads get weighted gradients. Cost per step: by level.
    """

    preferring = "never"

    @dataclass(frozen=True, kw_only=True)
    class Config(GramBalancer.Config):
        clip_shared: float = 1.0
        """Maximum norm of the gradient of the shared parameters (0: no clipping)."""

    def solve(self, gram: Float[Tensor, "t t"], losses: Float[Tensor, " t"],
              tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        return solvers.where_present(gram, 1, lambda g: solvers.balance_point(g, ridge=RIDGE))
