"""Dynamic weight average: tasks whose loss falls slowly get more weight.

Source: Liu, Johns and Davison, CVPR 2019, arXiv 1803.10704
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from polyptych import devices
from polyptych.balancers._task_numbers import SMALLEST, check_number, numbers
from polyptych.balancers._weighing import LossBalancer


class DWA(LossBalancer):
    """``w = K softmax(r / T)``, where ``r_t`` is the mean loss of a task over one window divided by that over the
    window before it.

    A window is an epoch, as in the paper: weights change once per epoch, and are 1 for the first two. With
    ``--balancer.window n`` the windows are the last n steps and the n before them, and weights change at every step.
    The tables of Nash-MTL, FAMO, and their successors call this DWA (n = 25, from step 26 on, with ones for losses not
    yet seen; here r is 1 until 2 n losses have been seen). A task without a label in a window keeps its state.

    Scale: the weights sum to K. Heads get weighted gradients. Cost per step: one backward pass.

    Raises:
        InputError: a temperature that is not above 0, or a window of less than one step.
    """

    tuned = ("temperature", (1.0, 4.0))

    @dataclass(frozen=True, kw_only=True)
    class Config(LossBalancer.Config):
        temperature: float = 2.0
        """Softmax temperature; high values approach equal weights."""
        window: int | None = None
        """Steps over which losses are averaged (default: an epoch)."""

    recent: Tensor
    seen: Tensor

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        check_number("temperature", config.temperature, config.temperature > 0, "a number above 0")
        if config.window is not None:
            check_number("window", config.window, config.window >= 1, "at least 1 step")
        self.temperature, self.window = config.temperature, config.window
        self.needs_losses = config.window is not None
        # The losses of two windows, old to new: one column per step, or the two means of two epochs.
        self.register_buffer("recent", numbers(self.tasks)[:, None].repeat(1, 2 * (config.window or 1)))
        self.register_buffer("seen", torch.zeros(len(self.tasks), dtype=torch.int64))

    def on_epoch_end(self, losses: dict[str, float]) -> None:
        if self.window is None:
            valid = [task for task in self.tasks if math.isfinite(losses.get(task, math.nan))]
            means = devices.sent([losses[task] for task in valid], self.recent.device, self.recent.dtype)
            self._remember(means, self.places(tuple(valid), self.recent))

    def weigh(self, losses: Float[Tensor, " t"], tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        here = self.places(tasks, self.recent)
        before, last = (half.mean(1).clamp(min=SMALLEST) for half in self.recent[here].chunk(2, 1))
        ratio = torch.where(self.seen[here] >= self.recent.shape[1], last / before, 1.0)
        if self.window is not None:
            self._remember(losses.to(self.recent), here)
        return (len(tasks) * (ratio / self.temperature).softmax(0)).to(losses)

    def _remember(self, losses: Float[Tensor, " t"], here: Int[Tensor, " t"]) -> None:
        finite, old = losses.isfinite(), self.recent[here]  # a single NaN would spoil two windows
        self.recent[here] = torch.where(finite[:, None], torch.cat([old[:, 1:], losses[:, None]], 1), old)
        self.seen[here] += finite
