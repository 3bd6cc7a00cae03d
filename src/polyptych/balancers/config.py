"""ConFIG: a step that has the same positive cosine with every task's gradient.

Source: Liu, Chu and Thuerey, ICLR 2025, arXiv 2408.11104
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.balancers import _solvers as solvers
from polyptych.balancers._gradients import GramBalancer

FLOOR = 1e-8  # eigenvalues of the cosines below this share of the largest are zero but for rounding


class ConFIG(GramBalancer):
    """The direction d is that of ``sum_t c_t u_t`` with ``C c = 1``, where u are the directions of the gradients and C
    is the matrix of their cosines; the length is ``sum_t g_t . d``, so that gradients that agree count in full.
    Preferences, if given, replace the ones on the right-hand side.

    The authors (and torchjd) apply the pseudoinverse to the matrix of all gradients; its result depends only on the
    cosines, so this code takes the pseudoinverse of those. If gradients point in exactly opposite directions, no such
    direction exists, and all weights are zero. A task whose gradient is zero also gets weight zero.

    Scale: the weights sum to K for independent gradients of equal length. Heads get unweighted gradients. Cost per
    step: by level.
    """

    preferring = "problem"

    @dataclass(frozen=True, kw_only=True)
    class Config(GramBalancer.Config):
        weight_heads: bool = False
        """Apply task weights also to the parameters that belong to one task alone."""

    def solve(self, gram: Float[Tensor, "t t"], losses: Float[Tensor, " t"],
              tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        preferred = self.wished(tasks)[solvers.present(gram)]
        return solvers.where_present(gram, 0, lambda present: conflict_free(present, preferred))


def conflict_free(gram: Float[Tensor, "t t"], preferred: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """The weights of ConFIG; all tasks must have a gradient."""
    cosine, lengths = solvers.cosines(gram)
    shares = (torch.linalg.pinv(cosine, rtol=FLOOR, hermitian=True) * preferred).sum(1)
    projections = cosine @ shares  # of the direction onto every u_t
    squared = shares @ projections
    if float(squared) < FLOOR:  # the directions cancel; dividing by the length would amplify rounding to a full step
        return torch.zeros_like(shares)
    return (lengths @ projections) / squared * shares / lengths
