"""DualProj: the mean gradient, projected onto the directions in which no task gets worse.

Source: Lopez-Paz and Ranzato, NeurIPS 2017, arXiv 1706.08840
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.balancers import _solvers as solvers
from polyptych.balancers.upgrad import UPGrad


class DualProj(UPGrad):
    """``P(mean_t g_t)``, where ``P(x)`` is the vector nearest to x that has no negative product with any gradient.

    The weights are ``argmin_{v >= 1 / K} v^T G v``. The paper projects the gradient of a new task against those of
    earlier tasks; torchjd applies it to the mean of tasks learned together and gave the method its name. As
    there, G is divided by its trace and ``ridge`` is added to its diagonal.

    Scale: the mean where it conflicts with no task, more where it does. Heads get unweighted gradients. Cost per step:
    by level.

    Raises:
        InputError: a ridge below 1e-10, where the problem is ill-conditioned.
    """

    def solve(self, gram: Float[Tensor, "t t"], losses: Float[Tensor, " t"],
              tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        return solvers.project_to_dual_cone(self.ridged(gram), torch.full_like(losses, 1 / len(losses)))
