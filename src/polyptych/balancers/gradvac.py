"""Gradient Vaccine: gradients are turned toward each other until they agree as much as they usually do.

Source: Wang, Tsvetkov, Firat and Cao, ICLR 2021, arXiv 2010.05874
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.balancers import _solvers as solvers
from polyptych.balancers._gradients import GramBalancer
from polyptych.balancers._task_numbers import check_number

LARGEST = 1 - 1e-8  # target cosine; at 1 the formula divides by zero


class GradVac(GramBalancer):
    """For every task i, and every other task j in random order, wherever the cosine c of ``h_i`` and ``g_j`` is below
    its moving average a::

        h_i += g_j |h_i| (a sqrt(1 - c^2) - c sqrt(1 - a^2)) / (|g_j| sqrt(1 - a^2))        a <- (1 - beta) a + beta c

    starting from ``h_i = g_i``; the cosine of the new ``h_i`` and ``g_j`` is a. The step is ``sum_i h_i``. Averages
    start at 0, with which the method is PCGrad. Each ordered pair of tasks has its own average; those of a task without
    a label or without a gradient do not move. The order is a function of the seed and of the step.

    The paper compares gradients layer by layer or as a whole; this code compares them as a whole. beta is 1e-2 in the
    paper (quoted from memory), and 0.5 in LibMTL and torchjd.

    Scale: the weights sum to K or more. Heads get unweighted gradients. Cost per step: by level.

    Raises:
        InputError: beta outside [0, 1].
    """

    tuned = ("beta", (0.1, 1e-3))

    @dataclass(frozen=True, kw_only=True)
    class Config(GramBalancer.Config):
        weight_heads: bool = False
        """Apply task weights also to the parameters that belong to one task alone."""
        beta: float = 0.01
        """How fast the running averages of the cosines adapt."""

    average: Tensor

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        check_number("beta", config.beta, 0 <= config.beta <= 1, "a number from 0 to 1")
        self.beta = config.beta
        self.register_buffer("average", torch.zeros(len(self.tasks), len(self.tasks), dtype=torch.float64))

    def solve(self, gram: Float[Tensor, "t t"], losses: Float[Tensor, " t"],
              tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        coefficients, random = torch.eye(len(gram), dtype=gram.dtype), self.random()
        lengths, row, here = gram.diagonal().sqrt(), self.positions(tasks), solvers.present(gram)
        for i, own in enumerate(coefficients):
            for j in torch.randperm(len(gram), generator=random).tolist():
                length = float((own @ gram @ own).clamp(min=0).sqrt())
                if j == i or length == 0 or not (here[i] and here[j]):
                    continue
                cosine = max(-1.0, min(1.0, float(own @ gram[j]) / (length * float(lengths[j]))))
                goal = min(float(self.average[row[i], row[j]]), LARGEST)
                if cosine < goal:
                    across = math.sqrt(1 - goal**2)
                    turn = goal * math.sqrt(1 - cosine**2) - cosine * across
                    own[j] += length * turn / (float(lengths[j]) * across)
                self.average[row[i], row[j]] += self.beta * (cosine - self.average[row[i], row[j]])
        return coefficients.sum(0)
