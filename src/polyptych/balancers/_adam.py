"""Adam for one number per task, kept by a balancer that moves its weights itself."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class TaskAdam(nn.Module):
    """Moments in buffers, so that they are saved and resumed with the balancer. Every task counts its own steps, and
    one that sits out a step does not move; ``torch.optim.Adam`` on a vector would keep moving it by momentum.

    Source: Kingma and Ba, ICLR 2015, arXiv 1412.6980
    """

    first: Tensor
    second: Tensor
    steps: Tensor

    def __init__(self, tasks: int, *, learning_rate: float, weight_decay: float = 0.0):
        """``weight_decay`` times the value is added to its gradient, as in Adam (not AdamW)."""
        super().__init__()
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        for name in ("first", "second", "steps"):
            self.register_buffer(name, torch.zeros(tasks, dtype=torch.float64))

    @torch.no_grad()
    def step(self, values: Float[Tensor, " t"], gradient: Float[Tensor, " t"], moving: Bool[Tensor, " t"]) -> None:
        """Update in place those ``values`` that are ``moving``; the gradients of the others are ignored."""
        gradient = torch.where(moving, gradient + self.weight_decay * values, 0)
        self.steps += moving
        for moment, new, beta in zip((self.first, self.second), (gradient, gradient.square()), BETAS, strict=True):
            moment.copy_(torch.where(moving, moment.lerp(new, 1 - beta), moment))
        # The clamp only keeps tasks that have not taken a step yet from dividing by zero.
        first, second = (moment / (1 - beta**self.steps).clamp(min=1 - beta)
                         for moment, beta in zip((self.first, self.second), BETAS, strict=True))
        values -= torch.where(moving, self.learning_rate * first / (second.sqrt() + EPSILON), 0)
