"""DB-MTL: gradients of the logarithms of the losses, averaged over steps and scaled to one length.

Source: Lin et al., 2023, arXiv 2308.12029
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.balancers._memory import RememberingBalancer
from polyptych.balancers._task_numbers import SMALLEST, check_number


class DBMTL(RememberingBalancer):
    """``m_t <- b m_t + (1 - b) g_t / loss_t`` with ``b = beta / step^sigma``; the step is ``sum_t (max_u |m_u| / |m_t|)
    m_t``.

    The average starts at zero without bias correction, so with beta 0.9 the first step has a tenth of its full size.
    sigma is 0.5 in the paper (quoted from memory), and 0 in LibMTL. A task without a label in a step keeps its average
    and takes no part in that step.

    Scale: the method's own: the sum of K vectors, all as long as the longest. Heads get gradients of the logarithm of
    their task's loss: their weight, which is the one logged, is ``1 / loss_t``. Cost per step: that of the level
    ``parameters``, and one more row of memory per task.

    Raises:
        InputError: beta outside [0, 1), or sigma below 0.
    """

    tuned = ("beta", (0.5, 0.1))
    preferring = "never"  # a factor of the loss cancels in the gradient of its logarithm

    @dataclass(frozen=True, kw_only=True)
    class Config(RememberingBalancer.Config):
        beta: float = 0.9
        """Weight of the past in the average gradients at the first step."""
        sigma: float = 0.5
        """How fast that weight decays with the step number."""

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        check_number("beta", config.beta, 0 <= config.beta < 1, "a number of at least 0 and below 1")
        check_number("sigma", config.sigma, config.sigma >= 0, "a number of at least 0")
        self.beta, self.sigma = config.beta, config.sigma

    def combine(self, rows: Float[Tensor, "t p"], losses: Float[Tensor, " t"],
                tasks: tuple[str, ...]) -> tuple[Float[Tensor, " p"], Float[Tensor, " t"]]:
        past, of_logarithm = self.beta / (self.steps + 1) ** self.sigma, 1 / losses.clamp(min=SMALLEST)
        for k, row, factor in zip(self.positions(tasks), rows, of_logarithm.tolist(), strict=True):
            self.memory[k].mul_(past).add_(row, alpha=(1 - past) * factor)
        lengths = self.remembered_gram(tasks).diagonal().sqrt()
        weights = torch.where(lengths > 0, lengths.max() / lengths, 0)
        return self.weighed_memory(weights, tasks), of_logarithm
