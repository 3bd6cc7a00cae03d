"""Uncertainty weighting: every task learns how noisy its labels are and is weighted accordingly.

Source: Kendall, Gal and Cipolla, CVPR 2018, arXiv 1705.07115; Liebel and Körner, 2018, arXiv 1805.06334 (revised)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.balancers._task_numbers import check_known, check_number
from polyptych.balancers._weighing import LossBalancer
from polyptych.types import Likelihood

CONSTANTS: dict[Likelihood, tuple[float, float]] = {"gaussian": (0.5, 0.5), "laplace": (1.0, 1.0),
                                                    "categorical": (1.0, 0.5)}
"""Factors of the loss and of the regularizer: a and b of ``a exp(-s) loss + b s``."""
RANGE = (-10.0, 10.0)


class Uncertainty(LossBalancer):
    """``sum_t a_t exp(-s_t) loss_t + b_t s_t``, with one learned s per task; the weight of task t is ``a_t exp(-s_t)``.

    The constants are those of the negative log-likelihood whose data term is the loss:

    =============  ================  ===  ===  ==============================
    likelihood     loss              a    b    s
    =============  ================  ===  ===  ==============================
    gaussian       squared error     1/2  1/2  log of the variance
    laplace        absolute error    1    1    log of the scale
    categorical    cross entropy     1    1/2  log of the squared temperature
    =============  ================  ===  ===  ==============================

    In a run, every task declares the likelihood of its loss, whatever its name (:class:`polyptych.tasks._base.Task`).
    In your own training loop, a task named after a kind (``semseg``) has the likelihood of that kind's default loss,
    and any other task is laplace unless ``likelihoods`` names another. The minimum over s is at ``exp(s) = loss a /
    b``, so weights slowly approach ``b / loss``: s moves by about its learning rate per step. With ``revised`` the
    total is ``sum_t exp(-s_t) loss_t / 2 + log(1 + exp(s_t))`` for every likelihood, which is never negative.

    s is kept within [-10, 10]: without bounds, the weight of a task with a loss of 0 grows forever. It is learned by
    the optimizer of the run, in a group without weight decay; the s of a task without a label in a step does not move.
    LibMTL and MTAN start at s = -0.5 and use the gaussian constants for all tasks; LibMTL decays s.

    Scale: the sum of the weights is free. Heads get weighted gradients. Cost per step: one backward pass.

    Raises:
        InputError: a likelihood for a task that the run does not have, or a start out of range.
    """

    tuned = ("learning_rate_factor", (10.0, 3.0))

    @dataclass(frozen=True, kw_only=True)
    class Config(LossBalancer.Config):
        likelihoods: dict[str, Likelihood] = field(default_factory=dict)
        """Likelihood for each task, where it is not the task's default."""
        revised: bool = False
        """Use the positive regularizer of Liebel and Körner."""
        start: float = 0.0
        """Initial value of every s."""
        learning_rate_factor: float = 1.0
        """Multiplies the optimizer's learning rate; s may need to move by several units."""

        def build(self, *, standard_weights: dict[str, float],
                  likelihoods: Mapping[str, Likelihood] | None = None) -> Uncertainty:
            return Uncertainty(self, standard_weights=standard_weights, likelihoods=likelihoods)

    def __init__(self, config: Config, *, standard_weights: dict[str, float],
                 likelihoods: Mapping[str, Likelihood] | None = None):
        super().__init__(config, standard_weights=standard_weights)
        check_known("likelihoods", config.likelihoods, self.tasks)
        check_number("start", config.start, RANGE[0] <= config.start <= RANGE[1], "a number from -10 to 10")
        said = {**(likelihoods or {}), **config.likelihoods}
        self.likelihoods = {task: said[task] if task in said else of_kind(task) for task in self.tasks}
        self.revised, self.learning_rate_factor = config.revised, config.learning_rate_factor
        # One parameter per task: optimizers skip parameters without a gradient, but would move a vector by momentum.
        start = torch.tensor(config.start, dtype=torch.float64)
        self.s = nn.ParameterDict({task: nn.Parameter(start.clone()) for task in self.tasks})

    def objective(self, losses: dict[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        parts = []
        for task, loss in losses.items():
            s = self.s[task]
            with torch.no_grad():
                s.clamp_(*RANGE)  # clamps the parameter; a clamp in the objective would have no gradient to lead s back
            a, b = CONSTANTS[self.likelihoods[task]]
            parts.append((-s).exp() * loss / 2 + F.softplus(s) if self.revised else a * (-s).exp() * loss + b * s)
        return torch.stack(parts).sum()


def of_kind(task: str) -> Likelihood:
    """The likelihood of a task known only by its name."""
    from polyptych.tasks._base import CATALOG  # here: a run declares its likelihoods and needs no import

    return CATALOG.load(task).likelihood if task in CATALOG.names() else "laplace"
