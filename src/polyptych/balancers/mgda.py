"""MGDA: the shortest vector in the convex hull of the tasks' gradients, along which every loss falls.

Source: Sener and Koltun, NeurIPS 2018, arXiv 1810.04650; Desideri, Comptes Rendus Mathematique 350, 2012
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from polyptych.balancers import _solvers as solvers
from polyptych.balancers._gradients import GramBalancer, Level
from polyptych.balancers._task_numbers import SMALLEST


class MGDA(GramBalancer):
    """``w = argmin |sum_t w_t g_t / s_t|`` over weights that are not negative and sum to 1; the step is
    ``sum_t w_t g_t``.

    s_t normalizes the gradient of task t before the comparison: 1, the norm of g_t, the loss, or the product of norm
    and loss. As in the authors' code (quoted from memory), s does not enter the step. The default level is the paper's
    upper bound (MGDA-UB), with gradients of the shared features, sample by sample. LibMTL sums these over the batch
    first, which is a different problem.

    The problem is solved exactly by an active-set method; the authors and torchjd stop Frank-Wolfe iterations early. A
    task whose gradient is zero would make the zero vector the solution and stall all other tasks, so it is left out and
    gets no weight. Two things to know: without normalization, the task with the smallest gradient gets nearly all the
    weight; and near a Pareto stationary point, steps are short.

    Scale: the weights sum to 1. Heads get unweighted gradients, as in the paper's algorithm. Cost per step: by level.
    """

    tuned = ("normalization", ("none", "loss+"))

    @dataclass(frozen=True, kw_only=True)
    class Config(GramBalancer.Config):
        level: Level = "representation"
        """Gradients of the shared features (the paper's MGDA-UB), of all shared parameters, or of the last layer."""
        weight_heads: bool = False
        """Apply task weights also to the parameters that belong to one task alone."""
        normalization: Literal["none", "l2", "loss", "loss+"] = "l2"
        """Divide gradients by 1, by their norm, by the loss, or by norm times loss before comparing them."""

    config: Config

    def promised(self, count: int) -> float | None:
        return super().promised(count) or 1.0

    def solve(self, gram: Float[Tensor, "t t"], losses: Float[Tensor, " t"],
              tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        here = solvers.present(gram)
        sizes = gram.diagonal().new_ones(len(gram))
        if self.config.normalization in ("l2", "loss+"):
            sizes = sizes * gram.diagonal().sqrt()
        if self.config.normalization in ("loss", "loss+"):
            sizes = sizes * losses.clamp(min=SMALLEST)
        sizes = sizes.where(here, 1)  # the others' rows are left out below, but must not become NaN
        return solvers.where_present(gram / sizes / sizes[:, None], 0, solvers.min_norm_point)
