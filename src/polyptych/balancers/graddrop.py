"""GradDrop: where tasks disagree on the sign of a gradient, one sign is chosen at random.

Source: Chen et al., NeurIPS 2020, arXiv 2010.06808
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from polyptych import distributed
from polyptych.balancers._gradients import JacobianBalancer, Level
from polyptych.balancers._task_numbers import check_known, check_number


class GradDrop(JacobianBalancer):
    """Element by element, with ``p = (1 + sum_t g_t / sum_t |g_t|) / 2`` and a random number u from 0 to 1: positive
    gradients stay where ``u < p``, negative ones where ``u > p``, and the rest is dropped (except for a task's leak).

    At the level of the representation, as in the paper, g is the gradient of the shared features z times sign(z),
    summed over the batch; one decision holds for all samples. Where p is 0 / 0, there is nothing to keep. The level
    ``parameters`` uses the gradients of parameters unchanged, as torchjd does. Random numbers are a function of the
    seed, the step, and the element, so they are the same in every process and micro-batch; with gradient accumulation,
    each micro-batch decides from its own gradients.

    Scale: the sum, less what is dropped. Heads get their gradients in full; the weights are 1. Cost per step: by level.

    Raises:
        InputError: a leak outside [0, 1], or one for a task that the run does not have.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(JacobianBalancer.Config):
        level: Level = "representation"
        """Gradients of the shared features, as in the paper, or of all shared parameters."""
        weight_heads: bool = False
        """No effect: all weights are 1."""
        leak: dict[str, float] = field(default_factory=dict)
        """For each task, the fraction of its gradient that is never dropped (default: 0)."""

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        check_known("leak", config.leak, self.tasks)
        for task, value in config.leak.items():
            check_number(f"leak of '{task}'", value, 0 <= value <= 1, "a number from 0 to 1")
        self.leak = config.leak

    def combine(self, rows: Float[Tensor, "t p"], losses: Float[Tensor, " t"],
                tasks: tuple[str, ...]) -> tuple[Float[Tensor, " p"], Float[Tensor, " t"]]:
        kept = self._kept(rows, 0)
        # Task by task: the rows are as large as memory allows.
        return sum((self._dropped(row, keep, task) for row, keep, task in zip(rows, kept, tasks, strict=True)),
                   torch.zeros_like(rows[0])), torch.ones_like(losses)

    def combine_maps(self, maps: Sequence[Float[Tensor, "b _ _ _"]], rows: Sequence[Float[Tensor, "t b _ _ _"]],
                     losses: Float[Tensor, " t"],
                     tasks: tuple[str, ...]) -> tuple[list[Tensor], Float[Tensor, " t"]]:
        combined = []
        for number, (z, of_tasks) in enumerate(zip(maps, rows, strict=True)):
            wide = torch.promote_types(z.dtype, torch.float32)
            kept = self._kept(distributed.total((of_tasks * z.sign()).sum(1, dtype=wide)), number)
            combined.append(sum((self._dropped(row, keep, task)
                                 for row, keep, task in zip(of_tasks, kept, tasks, strict=True)), torch.zeros_like(z)))
        return combined, torch.ones_like(losses)

    def _kept(self, signed: Float[Tensor, "*shape"], number: int) -> Bool[Tensor, "*shape"]:
        """Which elements stay, task by task. Each feature map of a step, by ``number``, has its own random numbers."""
        whole = signed.abs().sum(0)
        positive = (1 + torch.where(whole > 0, signed.sum(0) / whole, 0)) / 2
        seed = torch.randint(2**62, (number + 1,), generator=self.random())[number]
        random = torch.Generator(signed.device).manual_seed(int(seed))
        chance = torch.rand(positive.shape, generator=random, device=signed.device, dtype=signed.dtype)
        return ((signed > 0) & (chance < positive)) | ((signed < 0) & (chance > positive))

    def _dropped(self, gradient: Tensor, kept: Tensor, task: str) -> Tensor:
        """A task's gradient with the elements that are not kept reduced to its leak; all samples share the decision."""
        return torch.where(kept, gradient, self.leak.get(task, 0.0) * gradient)
