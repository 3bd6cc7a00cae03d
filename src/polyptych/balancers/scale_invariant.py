"""Sum of the logarithms of the losses: multiplying a loss by a constant changes nothing.

Source: baseline of Navon et al., ICML 2022, arXiv 2202.01017, and Liu et al., NeurIPS 2023, arXiv 2306.03792
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from polyptych.balancers._task_numbers import SMALLEST
from polyptych.balancers._weighing import LossBalancer


class ScaleInvariant(LossBalancer):
    """``sum_t log loss_t``, so the weight of task t is ``w_t = 1 / loss_t``.

    It has no option to tune, and is hard to beat where a task has tiny losses (Cityscapes depth). Its gradient is that
    of ``gls`` times a number that differs from step to step. Losses are positive; one below 1e-8 counts as 1e-8.

    Scale: the sum of the weights is free, and grows while the losses fall. Heads get weighted gradients. Cost per
    step: one backward pass.
    """

    def weigh(self, losses: Float[Tensor, " t"], tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        return 1 / losses.clamp(min=SMALLEST)
