"""Fast adaptive multi-task optimization: all losses decrease at the same rate, judged by the losses alone.

Source: Liu, Feng, Stone and Liu, NeurIPS 2023, arXiv 2306.03792
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polyptych.balancers._adam import TaskAdam
from polyptych.balancers._base import scalars
from polyptych.balancers._task_numbers import SMALLEST, check_known, check_number, numbers
from polyptych.balancers._weighing import LossBalancer


class FAMO(LossBalancer):
    """One step on ``c sum_t p_t log d_t`` with ``p = softmax(x)`` and ``d_t = loss_t - lowest_t + 1e-8``; the constant
    ``c = 1 / sum_t (p_t / d_t)`` makes the weights ``c p_t / d_t`` sum to 1.

    After the step, the losses of the same batch are measured again, and Adam updates x with the gradient
    ``(dp / dx)^T delta + decay x``, where ``delta_t = log d_t(before) - log d_t(after)``: a task that improves more
    than the others loses weight.

    The second measurement is one more forward pass per step, without gradients and without touching the statistics of
    normalization layers (LibMTL updates them twice). ``lazy`` avoids it by using the next batch's losses as ``after``,
    which adds the noise between batches to delta. A task without a label in a step keeps its x and its moments. The
    authors clip the gradient of the shared parameters to norm 1; here, ``--clip 1`` comes closest.

    Scale: the weights sum to 1. Heads get weighted gradients. Cost per step: one backward and two forward passes, or
    one of each if lazy.

    Raises:
        InputError: an option out of range, or a lowest loss for a task that the run does not have.
    """

    tuned = ("decay", (1e-2, 1e-4))

    @dataclass(frozen=True, kw_only=True)
    class Config(LossBalancer.Config):
        learning_rate: float = 0.025
        """Learning rate of Adam for x."""
        decay: float = 1e-3
        """Weight decay of x: 1e-3 for NYUv2, 1e-2 for Cityscapes (authors' scripts)."""
        lazy: bool = False
        """Use the losses of the next batch instead of a second forward pass."""
        lowest: dict[str, float] = field(default_factory=dict)
        """Lowest loss that each task can reach (default: 0)."""

    x: Tensor
    before: Tensor
    lowest: Tensor

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        check_number("learning_rate", config.learning_rate, config.learning_rate > 0, "a number above 0")
        check_number("decay", config.decay, config.decay >= 0, "a number of at least 0")
        check_known("lowest", config.lowest, self.tasks)
        self.wants_after_step, self.lazy = not config.lazy, config.lazy
        lowest = torch.tensor([config.lowest.get(task, 0.0) for task in self.tasks], dtype=torch.float64)
        self.register_buffer("lowest", lowest, persistent=False)
        self.register_buffer("x", numbers(self.tasks))
        self.register_buffer("before", numbers(self.tasks, torch.inf))  # log d of this step; inf: no label
        self.adam = TaskAdam(len(self.tasks), learning_rate=config.learning_rate, weight_decay=config.decay)

    def weigh(self, losses: Float[Tensor, " t"], tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        here = self.places(tasks, self.x)
        logarithms = self._logarithms(losses, here)
        if self.lazy:
            self._learn(logarithms)
        self.before = torch.where(logarithms.isinf(), self.before if self.lazy else torch.inf, logarithms)
        weights = self.x[here].softmax(0) * (-logarithms[here]).exp()
        return (weights / weights.sum()).to(losses)

    def after_step(self, again: Callable[[], dict[str, Tensor]]) -> None:
        if not self.lazy:
            losses = again()
            losses = scalars(losses, self.tasks, active=losses)
            if losses:  # none at all: nothing is known of this step
                after = torch.stack([loss.detach() for loss in losses.values()])
                self._learn(self._logarithms(after, self.places(tuple(losses), self.x)))
            self.before = torch.full_like(self.before, torch.inf)  # a step without any label does not reach weigh

    def _logarithms(self, losses: Float[Tensor, " t"], here: Int[Tensor, " t"]) -> Float[Tensor, " all"]:
        """log d for every task of the run, infinity where a task has no label."""
        logarithms = torch.full_like(self.x, torch.inf)
        logarithms[here] = (losses.to(self.x) - self.lowest[here]).clamp(min=0).add(SMALLEST).log()
        return logarithms

    def _learn(self, after: Float[Tensor, " all"]) -> None:
        """Update x from the change between ``before`` and ``after``, for the tasks that have both."""
        moving = self.before.isfinite() & after.isfinite()
        p = torch.where(moving, self.x, -torch.inf).softmax(0).nan_to_num(0.0)  # no task at all: nothing moves
        delta = torch.where(moving, self.before - after, 0.0)
        self.adam.step(self.x, p * (delta - (p * delta).sum()), moving)
