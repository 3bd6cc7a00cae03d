"""Random weights at every step: a baseline that is hard to beat.

Source: Lin, Ye, Zhang and Tsang, TMLR 2022, arXiv 2111.10603
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych import devices
from polyptych.balancers._weighing import LossBalancer


class RLW(LossBalancer):
    """``w = softmax(n)``, where n is fresh standard normal noise, as in the paper's tables. (The paper also draws from
    other distributions, which do as well.)

    The noise is a function of the seed and of the step alone, so a resumed run continues with the same weights, and
    several processes have the same ones without communication. Where some tasks have no label in a step, the softmax
    is over the others.

    Scale: the weights sum to 1, so gradients are K times smaller than with ``equal``. Heads get weighted gradients.
    Cost per step: one backward pass.
    """

    needs_losses = False

    def weigh(self, losses: Float[Tensor, " t"], tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        noise = torch.randn(len(self.tasks), generator=self.random(), dtype=torch.float64)
        return devices.sent(noise[self.positions(tasks)].softmax(0), losses.device, losses.dtype)
