"""Aligned-MTL: gradients are made orthogonal and equally long, with the smallest possible change.

Source: Senushkin, Patakin, Kuznetsov and Konushin, CVPR 2023, arXiv 2305.19000
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from polyptych.balancers import _solvers as solvers
from polyptych.balancers._gradients import GramBalancer
from polyptych.balancers._task_numbers import check_number


class AlignedMTL(GramBalancer):
    """``w = B p`` with ``B = s V S^(-1/2) V^T``, where ``G = V S V^T`` is the eigendecomposition of the inner
    products of the gradients, and s is their smallest singular value: their condition number becomes 1.

    p holds the preferences, which are 1 unless given.

    Singular values below ``floor`` times the largest count as zero. The paper's only floor is rounding. Gradients are
    float32 here, so their inner products do not distinguish smaller values from noise, and scaling by the smallest
    value would shrink the step to that noise. LibMTL's version does not run on torch 2. torchjd takes the mean of the
    aligned gradients; this code and LibMTL take the sum.

    Scale: the method's own; the weights sum to K for orthogonal gradients of equal length, and to less otherwise. Heads
    get unweighted gradients. Cost per step: by level.

    Raises:
        InputError: a floor outside [0, 1).
    """

    tuned = ("scale", ("median", "rmse"))

    @dataclass(frozen=True, kw_only=True)
    class Config(GramBalancer.Config):
        weight_heads: bool = False
        """Apply task weights also to the parameters that belong to one task alone."""
        scale: Literal["min", "median", "rmse"] = "min"
        """Length of the aligned gradients: the smallest, median or root-mean-square singular value."""
        floor: float = 1e-4
        """Singular values below this fraction of the largest count as zero."""

    config: Config
    preferring = "problem"

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        check_number("floor", config.floor, 0 <= config.floor < 1, "a number of at least 0 and below 1")

    def solve(self, gram: Float[Tensor, "t t"], losses: Float[Tensor, " t"],
              tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        aligned = solvers.balanced_transform(gram, self.config.scale, floor=self.config.floor)
        return (aligned * self.wished(tasks)).sum(1)
