"""Nash-MTL: tasks bargain for the step; the Nash bargaining solution is taken.

Source: Navon et al., ICML 2022, arXiv 2202.01017
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from polyptych.balancers import _solvers as solvers
from polyptych.balancers._gradients import GramBalancer

RIDGE = 1e-8  # of the diagonal; without it gradients that cancel exactly have no agreement


class NashMTL(GramBalancer):
    """``G w = 1 / w`` with ``w > 0``, where G are the inner products of the gradients.

    That is the minimum of the convex function ``w^T G w / 2 - sum_t log w_t``, which a Newton method solves to
    rounding in a few dozen small linear systems. The authors run 20 rounds of a convex-concave procedure with a conic
    solver; where that fails they keep the last weights (and LibMTL, with the solver versions it asks for, silently
    has weights of 1). ``every`` of 10 to 50 is the paper's way to save time. A task whose gradient is zero takes no
    part and has weight 1.

    Scale: the method's own: ``|sum_t w_t g_t|`` is the root of K whatever the size of the gradients, so weights go
    with the inverse of that size, and they grow where gradients cancel. (The authors' code divides G by its Frobenius
    norm for its solver, but its constraint ``log(n w) + log(G w / n) >= 0`` multiplies by it again: its weights are
    these.) The shared gradient is clipped to norm 1, as by the authors, which therefore changes every step: shared
    parameters move by the direction alone. Heads get weighted gradients. Cost per step: by level.
    """

    preferring = "never"

    @dataclass(frozen=True, kw_only=True)
    class Config(GramBalancer.Config):
        clip_shared: float = 1.0
        """Maximum norm of the gradient of the shared parameters (0: no clipping)."""

    def solve(self, gram: Float[Tensor, "t t"], losses: Float[Tensor, " t"],
              tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        return solvers.where_present(gram, 1, lambda g: solvers.balance_point(g, ridge=RIDGE))
