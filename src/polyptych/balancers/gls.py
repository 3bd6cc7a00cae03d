"""Geometric mean of the losses, whose gradient does not depend on their scales.

Source: Chennupati, Sistu, Yogamani and Rawashdeh, CVPR workshops 2019, arXiv 1904.08492
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from polyptych.balancers._task_numbers import SMALLEST
from polyptych.balancers._weighing import LossBalancer


class GLS(LossBalancer):
    """``(prod_t loss_t)^(1/K)``, so the weight of task t is ``w_t = (prod_u loss_u)^(1/K) / (K loss_t)``.

    Every task has the same share of the total: ``w_t loss_t`` is the geometric mean divided by K. Losses are positive;
    one below 1e-8 counts as 1e-8. The mean is computed from logarithms, because LibMTL's plain product over- and
    underflows with many tasks. Tasks without a label in a step are not part of the product.

    Scale: the sum of the weights is free; it is 1 where all losses are equal. Heads get weighted gradients. Cost per
    step: one backward pass.
    """

    def weigh(self, losses: Float[Tensor, " t"], tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        logarithms = losses.clamp(min=SMALLEST).log()
        return (logarithms.mean() - logarithms).exp() / len(tasks)
