"""FairGrad: alpha-fair gains of the tasks, from their sum through Nash bargaining to the worst task alone.

Source: Ban and Ji, ICML 2024, arXiv 2402.15638
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from polyptych.balancers import _solvers as solvers
from polyptych.balancers._gradients import GramBalancer
from polyptych.balancers._task_numbers import check_number

RIDGE = 1e-8  # of the diagonal; without it the equation has no solution for gradients that cancel exactly


class FairGrad(GramBalancer):
    """``G a = a^(-1 / alpha)`` with ``a > 0``; the step is ``K sum_t a_t g_t``, with the factor K of the authors' code.

    alpha is 1 for proportional fairness (Nash-MTL up to scale); the method tends to the plain sum near 0 and to the
    worst task for large values. The authors' experiments use 2 and clip the shared gradient to norm 1. They solve the
    equations by nonlinear least squares; this code uses Newton's method on the same convex problem as in Nash-MTL.
    LibMTL differs: alpha 1, neither factor nor clipping, and weighted gradients for heads. A task whose gradient is
    zero takes no part and has weight 1.

    Scale: the method's own; weights scale with the gradients' norm to the power ``-2 alpha / (alpha + 1)``. Heads get
    unweighted gradients. Cost per step: by level.

    Raises:
        InputError: alpha that is not above 0.
    """

    tuned = ("alpha", (1.0, 5.0))

    @dataclass(frozen=True, kw_only=True)
    class Config(GramBalancer.Config):
        weight_heads: bool = False
        """Apply task weights also to the parameters that belong to one task alone."""
        clip_shared: float = 1.0
        """Maximum norm of the gradient of the shared parameters (0: no clipping)."""
        alpha: float = 2.0
        """Fairness: 1 is proportional; higher values favor tasks that improve little."""

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        check_number("alpha", config.alpha, config.alpha > 0, "a number above 0")
        self.alpha = config.alpha
        self.preferring = "never" if self.alpha == 1 else "losses"  # then the step is that of Nash-MTL

    def solve(self, gram: Float[Tensor, "t t"], losses: Float[Tensor, " t"],
              tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        return solvers.where_present(
            gram, 1, lambda g: len(tasks) * solvers.balance_point(g, 1 / self.alpha, ridge=RIDGE))
