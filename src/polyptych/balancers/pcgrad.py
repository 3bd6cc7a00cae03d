"""PCGrad: gradients that conflict are projected onto each other's normal plane, and then summed.

Source: Yu et al., NeurIPS 2020, arXiv 2001.06782
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.balancers._gradients import GramBalancer


class PCGrad(GramBalancer):
    """For every task i, and every other task j in random order: where ``h_i . g_j < 0``, ``h_i -= (h_i . g_j / |g_j|^2)
    g_j``, starting from ``h_i = g_i``. The step is ``sum_i h_i``.

    As in the paper, each h_i is projected against the original gradients g_j, never against an h_j. It is kept as
    coefficients of the g, so only inner products are needed; the weights are the sums of the coefficients. The order is
    a function of the seed and of the step. With two tasks it does not matter.

    Scale: the weights sum to K where no gradients conflict, and to more where they do. Heads get unweighted gradients.
    Cost per step: by level.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(GramBalancer.Config):
        weight_heads: bool = False
        """Apply task weights also to the parameters that belong to one task alone."""

    def solve(self, gram: Float[Tensor, "t t"], losses: Float[Tensor, " t"],
              tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        coefficients, random = torch.eye(len(gram), dtype=gram.dtype), self.random()
        for i, own in enumerate(coefficients):
            for j in torch.randperm(len(gram), generator=random).tolist():
                inner = float(own @ gram[j])
                if j != i and inner < 0:  # then the gradient of j is not zero
                    own[j] -= inner / gram[j, j]
        return coefficients.sum(0)
