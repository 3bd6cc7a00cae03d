"""Preferences: per-task factors for a method that compares gradients, constant or from a loss-weighting balancer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial, reduce
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.balancers._base import Balancer, Pass, add
from polyptych.balancers._engine import undisturbed
from polyptych.balancers._task_numbers import check_positive
from polyptych.balancers._weighing import LossBalancer
from polyptych.errors import InputError
from polyptych.record import chosen
from polyptych.types import Output


class PreferringBalancer(Balancer):
    """A balancer whose tasks have preferences: constant ones, the weights that another balancer gives to the losses of
    each step (``weighing``), or the product of both.

    The method decides how preferences enter: they multiply the losses, heads included, before the gradients are taken
    (``losses``); they enter the method's equations (``problem``); or the method takes the same step whatever the
    scale of a loss, and refuses them (``never``).

    Attributes:
        preferring: how preferences enter.
        preferences: the constant ones, by task; a task without one has 1.
        weighing: the balancer of losses; None without one.
        wishes: the preferences of the tasks in this step, where they enter the method's equations.
    """

    preferring: Literal["losses", "problem", "never"] = "losses"

    def __init__(self, config: Balancer.Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        self.preferences: Mapping[str, float] = {}
        self.weighing: LossBalancer | None = None
        self.wishes: dict[str, float | Tensor] = {}

    def prefer(self, preferences: Mapping[str, float]) -> None:
        """Set the constant preferences.

        Raises:
            InputError: the run does not have such a task, or a preference is not above 0.
        """
        check_positive("preferences", preferences, self.tasks)
        self.preferences = preferences

    def weigh_by(self, weighing: Balancer) -> None:
        """Take the weights of a loss-weighting balancer as preferences."""
        assert isinstance(weighing, LossBalancer)
        self.weighing, self.learning_rate_factor = weighing, weighing.learning_rate_factor
        self.wants_after_step = weighing.wants_after_step

    def after_step(self, again: Callable[[], dict[str, Tensor]]) -> None:
        if self.weighing is not None:
            self.weighing.after_step(again)

    def on_epoch_end(self, losses: dict[str, float]) -> None:
        if self.weighing is not None:
            self.weighing.on_epoch_end(losses)

    def on_validation(self, metrics: dict[str, dict[str, float]]) -> None:
        if self.weighing is not None:
            self.weighing.on_validation(metrics)

    def refuse_preferences(self, option: Literal["preferences", "weighing"]) -> None:
        """Refuse an option that asks for preferences where they would change nothing.

        Raises:
            InputError: the method never takes preferences.
        """
        if self.preferring == "never":
            raise InputError(f"balancer.{option}", f"preferences for {type(self).__name__}", "a method whose step "
                             "depends on the scale of the losses", "leave them out, or choose another method, such as "
                             "pcgrad or cagrad")

    def wished(self, tasks: Sequence[str]) -> Float[Tensor, " t"]:
        """The preferences (t) that enter the method's equations; 1 unless given."""
        return torch.tensor([float(self.wishes.get(task, 1.0)) for task in tasks], dtype=torch.float64)


def weighing_config(name: str, numbers: Mapping[str, float]) -> LossBalancer.Config:
    """The config of the loss-weighting balancer that ``weighing`` names, with its numeric options.

    Raises:
        InputError: no loss-weighting balancer has that name, or it does not have such an option.
    """
    options = {option: int(value) if value == value // 1 else value for option, value in numbers.items()}
    found = chosen(Balancer.Config, name, options, "balancer.weighing")
    if not isinstance(found, LossBalancer.Config):
        raise InputError("balancer.weighing", name, "a balancer that weights losses", "choose for instance fixed, dwa, "
                         "uncertainty or famo")
    return found


class PreferredPasses:
    """The passes of a step. Where preferences multiply losses, the passes return the products; the losses are kept.

    Attributes:
        passes: for the step; the given ones where the balancer has no preferences.
    """

    def __init__(self, balancer: PreferringBalancer, passes: Sequence[Pass], network: nn.Module, scale: float | Tensor,
                 active: Collection[str] | None):
        self.balancer, self.scale, self.active = balancer, scale, active
        self._factors: dict[str, float | Tensor] | None = None
        self._losses: dict[int, dict[str, Tensor]] = {}
        self.passes, weighing = passes, balancer.weighing
        if weighing is None and not balancer.preferences:
            return
        if weighing is not None:
            weighing.begin()
            if len(passes) > 1 and weighing.needs_losses:
                with undisturbed(network), torch.no_grad():
                    self._decide(reduce(add, (run()[0] for run in passes), {}))
        self.passes = [partial(self._run, number, run) for number, run in enumerate(passes)]

    def _run(self, number: int, run: Pass) -> tuple[dict[str, Tensor], Output | None]:
        losses, output = run()
        self._losses[number] = {task: loss.detach() for task, loss in losses.items()}
        factors = self._factors if self._factors is not None else self._decide(losses)
        if self.balancer.preferring == "problem":
            return losses, output
        return {task: loss * factors[task] for task, loss in losses.items()}, output

    def _decide(self, losses: dict[str, Tensor]) -> dict[str, float | Tensor]:
        """The factors of the step, decided once, however often its passes run."""
        given, weighing = self.balancer.preferences, self.balancer.weighing
        factors: dict[str, float | Tensor] = {task: given.get(task, 1.0) for task in losses}
        if weighing is not None:
            found = weighing._weights(losses, self.scale, self.active)
            factors = {task: factor * found[task] for task, factor in factors.items()}
            weighing.steps += 1
        self._factors = factors
        if self.balancer.preferring == "problem":
            self.balancer.wishes = factors
        return factors

    def finish(self, losses: dict[str, Tensor],
               weights: dict[str, float | Tensor]) -> tuple[dict[str, Tensor], dict[str, float | Tensor]]:
        """The losses without preferences, and the full weight of each task: the method's times its preference."""
        if self._factors is None:
            return losses, weights
        losses = reduce(add, (self._losses[number] for number in sorted(self._losses)), {})
        if self.balancer.preferring == "losses":
            weights = {task: weight * self._factors[task] for task, weight in weights.items()}
        if self.balancer.weighing is not None:
            self.balancer.diagnostics |= {f"preference/{task}": value if isinstance(value, float) else value.detach()
                                          for task, value in self._factors.items()}
        return losses, weights
