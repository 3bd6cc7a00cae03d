"""Smooth Tchebycheff: a soft maximum over tasks of each loss relative to where it began.

Source: Lin, Zhang, Yang, Liu, Wang and Zhang, ICML 2024, arXiv 2402.19078
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.balancers._task_numbers import SMALLEST, check_number, check_positive, numbers
from polyptych.balancers._weighing import LossBalancer


class STCH(LossBalancer):
    """``K mu log sum_t exp(p_t f_t / mu)`` with ``f_t = log(loss_t / n_t)``, the authors' recipe for multi-task
    networks, in which all preferences p are 1.

    In the first ``warmup`` epochs and the one after them, the total is ``sum_t log loss_t``; the nadir n_t is the mean
    loss of that last epoch, as in the authors' code. The weight of task t is ``1 / loss_t`` before, and
    ``K softmax(p f / mu)_t p_t / loss_t`` after. A task without a label in that epoch takes its nadir from the next
    epoch in which it has one, and has the weight ``1 / loss_t`` until then. Without a warm-up, all nadirs are 1 from
    the start. A run that ends before the nadir is taken is the same as with ``scale_invariant``.

    torchjd's STCH is the bare formula, with neither logarithm nor nadir. LibMTL logs weights of 1. Losses are
    positive; one below 1e-8 counts as 1e-8.

    Scale: the sum of the weights is free; the shares ``w_t loss_t / p_t`` sum to K. Heads get weighted gradients. Cost
    per step: one backward pass.

    Raises:
        InputError: a mu or preference that is not above 0, a preference for a task that the run does not have,
            or a negative warm-up.
    """

    tuned = ("mu", (0.1, 10.0))

    @dataclass(frozen=True, kw_only=True)
    class Config(LossBalancer.Config):
        mu: float = 1.0
        """Softness of the maximum; near 0, only the worst task counts."""
        warmup: int = 4
        """Epochs before the one whose mean losses become the nadir; 0 sets all nadirs to 1."""
        preferences: dict[str, float] = field(default_factory=dict)
        """Preference for each task (default: 1); higher values push the task's loss lower (lambda in the paper)."""

    epochs: Tensor
    nadir: Tensor
    preferences: Tensor

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        check_number("mu", config.mu, config.mu > 0, "a number above 0")
        check_number("warmup", config.warmup, config.warmup >= 0, "a number of at least 0")
        check_positive("preferences", config.preferences, self.tasks)
        self.mu, self.warmup = config.mu, config.warmup
        preferences = torch.tensor([config.preferences.get(task, 1.0) for task in self.tasks], dtype=torch.float64)
        self.register_buffer("preferences", preferences, persistent=False)
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))
        self.register_buffer("nadir", numbers(self.tasks, torch.inf if config.warmup else 1.0))

    def on_epoch_end(self, losses: dict[str, float]) -> None:
        self.epochs += 1
        if int(self.epochs) > self.warmup:
            for place, task in enumerate(self.tasks):
                if math.isinf(float(self.nadir[place])) and math.isfinite(losses.get(task, math.nan)):
                    self.nadir[place] = max(losses[task], SMALLEST)

    def weigh(self, losses: Float[Tensor, " t"], tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        here = self.places(tasks, self.nadir)
        safe, nadir, preferred = losses.clamp(min=SMALLEST).to(self.nadir), self.nadir[here], self.preferences[here]
        known = nadir.isfinite()
        distance = torch.where(known, preferred * (safe / nadir).log() / self.mu, -torch.inf)
        shares = torch.where(known, known.sum() * preferred * distance.softmax(0), 1.0)
        return (shares / safe).to(losses)
