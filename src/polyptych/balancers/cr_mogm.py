"""CR-MOGM: the weights of another method, averaged over steps, so that the noise of single batches affects them less.

Source: Zhou et al., NeurIPS 2022, On the Convergence of Stochastic Multi-Objective Gradient Manipulation and Beyond
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.balancers import _solvers as solvers
from polyptych.balancers._base import CATALOG
from polyptych.balancers._gradients import GramBalancer, JacobianBalancer
from polyptych.balancers._task_numbers import check_number, numbers
from polyptych.errors import InputError, nearest


class CRMOGM(GramBalancer):
    """``w <- a w + (1 - a) v`` with v the weights that ``method`` finds in this step; the step is ``sum_t w_t g_t``.

    Any method that finds weights from inner products will do (``mgda``, ``cagrad``, ``nash_mtl``, ...). The options for
    level, heads, scale, and clipping are those of this balancer, whatever the method's defaults are. In the paper, a
    rises toward 1 as the learning rate falls; here it is constant, 0.9, as in torchjd. A task's average starts at its
    first weight, not at ``1 / K`` (torchjd has had both), because the weights of some methods are far from that.

    A task without a label in a step keeps its average. If the method's weights have a fixed sum, the averages of the
    other tasks are scaled to that sum for the step; afterward their joint part of it is what it was before.

    Scale: that of the method. Heads get unweighted gradients. Cost per step: by level.

    Raises:
        InputError: a share outside [0, 1), a method that has no weights to average, or an option that the method does
            not have.
    """

    tuned = ("share", (0.5, 0.99))

    @dataclass(frozen=True, kw_only=True)
    class Config(GramBalancer.Config):
        weight_heads: bool = False
        """Apply task weights also to the parameters that belong to one task alone."""
        method: str = "mgda"
        """Balancer whose weights are averaged."""
        options: dict[str, float] = field(default_factory=dict)
        """Numeric options of that balancer, by name, where they differ from its defaults."""
        share: float = 0.9
        """Weight of the previous average in the new one (alpha in the paper)."""

    average: Tensor

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        check_number("share", config.share, 0 <= config.share < 1, "a number of at least 0 and below 1")
        self.share, self.method = config.share, method_of(config, standard_weights)
        self.preferring = self.method.preferring
        self.register_buffer("average", numbers(self.tasks, torch.inf))  # inf: not known yet

    def promised(self, count: int) -> float | None:
        return super().promised(count) or self.method.promised(count)

    def solve(self, gram: Float[Tensor, "t t"], losses: Float[Tensor, " t"],
              tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        self.method.wishes = self.wishes
        self.method.steps, self.method.seed = self.steps, self.seed  # its random numbers are those of this step
        found, here = self.method.solve(gram, losses, tasks).double().cpu(), self.positions(tasks)
        if not bool(found.isfinite().all()):
            return found
        before = torch.where(self.average[here].isfinite(), self.average[here], found)
        total, part = self.method.promised(len(tasks)), 1.0
        if total is not None:
            part = float(before.sum()) / total
            before = total * solvers.shares(before)
        weights = self.share * before + (1 - self.share) * found
        self.average[here] = part * weights
        return weights


def method_of(config: CRMOGM.Config, standard_weights: dict[str, float]) -> GramBalancer:
    """The method whose weights are averaged, with its options.

    Raises:
        InputError: it does not find weights from inner products, or does not have one of the options.
    """
    kind = CATALOG.load(config.method)
    if not issubclass(kind, GramBalancer) or issubclass(kind, (JacobianBalancer, CRMOGM)):
        raise InputError("balancer.method", config.method, "a method that finds weights from inner products of "
                         "gradients", "choose for instance mgda, cagrad, pcgrad or nash_mtl")
    general = {option.name for option in fields(GramBalancer.Config)}
    known = [option.name for option in fields(kind.Config)
             if option.name not in general and isinstance(option.default, float)]
    for name in config.options:
        if name not in known:
            raise InputError("balancer.options", f"'{name}' for {config.method}", nearest(name, known) if known
                             else "no options: this method has no numbers to choose", "correct the option")
    options: dict[str, Any] = {**config.options}
    method = kind.Config(**options).build(standard_weights=standard_weights)
    assert isinstance(method, GramBalancer)
    return method
