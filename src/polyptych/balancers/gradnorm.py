"""GradNorm: weights that make all tasks train at similar rates, learned from their gradient norms.

Source: Chen, Badrinarayanan, Lee and Rabinovich, ICML 2018, arXiv 1711.02257
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.balancers._adam import TaskAdam
from polyptych.balancers._gradients import GramBalancer, Level
from polyptych.balancers._task_numbers import SMALLEST, check_number, check_positive, numbers

LEAST = 1e-4  # smallest weight; an update could make one negative, and its loss would be maximized


class GradNorm(GramBalancer):
    """Weights w are learned so that ``w_t n_t`` approaches ``mean_u(w_u n_u) r_t^alpha``.

    n_t is the norm of the gradient of loss_t in the last shared layer, and r_t the relative inverse training rate: the
    share of the initial loss that is left, ``loss_t / initial_t``, divided by its mean over tasks. In the objective
    ``sum_t |w_t n_t - target_t|``, the targets are constants and the norms do not depend on w, so its gradient is
    ``sign(w_t n_t - target_t) n_t``, without second derivatives. The weights have an optimizer of their own; after each
    of its steps they are raised to at least 1e-4 and scaled to sum to K. As in the paper's algorithm, a step uses the
    weights from before its own update.

    The steps of Adam are about as large as its learning rate, whatever the size of the gradients; those of ``sgd`` are
    proportional to the gradients. The paper leaves both this choice and the rate of 0.025 unclear (quoted from memory).
    The initial loss is that of the first batch, the mean over the first ``initial_steps`` steps, or the value in
    ``initial`` (log C for a cross entropy of C classes). A task without a label in a step keeps its weight and its
    moments.

    Where the scales of losses differ by far more than 1 / ``learning_rate``, the smallest weight should be less than a
    step of Adam, and jumps between its bound and a multiple of the right value: lower the rate, or first bring the
    losses closer to one scale.

    LibMTL differs: softmax weights in the network's optimizer (with its weight decay), norms over all shared
    parameters, initial losses of a whole epoch in which nothing is balanced, and heads with unweighted gradients.

    Scale: the weights sum to K. Heads get weighted gradients. Cost per step: one backward pass, and one
    more per task through the heads alone.

    Raises:
        InputError: an option out of range, or an initial loss for a task that the run does not have.
    """

    tuned = ("alpha", (0.5, 0.12))
    preferring = "never"

    @dataclass(frozen=True, kw_only=True)
    class Config(GramBalancer.Config):
        level: Level = "layer"
        """Gradients of the last shared layer, as in the paper, of all shared parameters, or of the shared features."""
        alpha: float = 1.5
        """How strongly slow tasks are sped up; 0 makes all gradients equally large."""
        learning_rate: float = 0.025
        """Learning rate of the weights."""
        optimizer: Literal["adam", "sgd"] = "adam"
        """Optimizer of the weights."""
        initial_steps: int = 1
        """Steps over which the initial loss is averaged."""
        initial: dict[str, float] = field(default_factory=dict)
        """Initial loss of each task, if known in advance."""

    weights: Tensor
    initial: Tensor
    seen: Tensor

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        check_number("alpha", config.alpha, config.alpha >= 0, "a number of at least 0")
        check_number("learning_rate", config.learning_rate, config.learning_rate > 0, "a number above 0")
        check_number("initial_steps", config.initial_steps, config.initial_steps >= 1, "at least 1 step")
        check_positive("initial", config.initial, self.tasks)
        self.alpha, self.rate, self.initial_steps = config.alpha, config.learning_rate, config.initial_steps
        self.adam = TaskAdam(len(self.tasks), learning_rate=self.rate) if config.optimizer == "adam" else None
        self.register_buffer("weights", numbers(self.tasks, 1.0))
        self.register_buffer("initial", numbers(self.tasks))
        self.register_buffer("seen", torch.zeros(len(self.tasks), dtype=torch.int64))  # losses in ``initial``
        for task, value in config.initial.items():
            self.initial[self.tasks.index(task)], self.seen[self.tasks.index(task)] = value, config.initial_steps

    def solve(self, gram: Float[Tensor, "t t"], losses: Float[Tensor, " t"],
              tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        here, norms = self.positions(tasks), gram.diagonal().clamp(min=0).sqrt()
        self._remember(losses, here)
        left = losses.clamp(min=SMALLEST) / self.initial[here].clamp(min=SMALLEST)
        weights = self.weights[here]
        sizes = weights * norms
        targets = sizes.mean() * (left / left.mean()) ** self.alpha
        self._move(torch.sign(sizes - targets) * norms, here)
        return weights

    def _remember(self, losses: Float[Tensor, " t"], here: list[int]) -> None:
        """Keep averaging the initial losses of tasks that have had fewer than ``initial_steps`` steps."""
        seen, initial = self.seen[here], self.initial[here]
        more = seen < self.initial_steps
        self.initial[here] = torch.where(more, (initial * seen + losses) / (seen + 1), initial)
        self.seen[here] = seen + more

    def _move(self, gradient: Float[Tensor, " t"], here: list[int]) -> None:
        """One optimizer step of the weights. Their sum stays, so that tasks without a label keep their share of K."""
        total = self.weights[here].sum()
        if self.adam is None:
            self.weights[here] -= self.rate * gradient
        else:
            moving = torch.zeros(len(self.tasks), dtype=torch.bool)
            moving[here] = True
            everywhere = torch.zeros_like(self.weights)
            everywhere[here] = gradient
            self.adam.step(self.weights, everywhere, moving)
        moved = self.weights[here].clamp(min=LEAST)
        self.weights[here] = moved * (total / moved.sum())
