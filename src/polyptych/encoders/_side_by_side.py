"""Networks side by side: one backbone per task, run stage by stage, which exchange features between stages."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.backbones._base import Backbone
from polyptych.backbones._states import maps_of, probe, with_maps
from polyptych.encoders._base import OwnBackbones
from polyptych.errors import InputError
from polyptych.types import Features, TaskFeatures


class SideBySide(OwnBackbones):
    """Soft parameter sharing: every task keeps its own weights, and learned units mix the features of all tasks after a
    stage. All backbones therefore run one stage before any runs the next. Each map of a state has its own unit: every
    branch of HRNet, and the prefix tokens of a transformer. Values that are not maps (unpooling indices) stay with
    their task.

    No feature is common to all tasks, so ``shared`` is empty.
    """

    def __init__(self, backbone: Backbone.Config, tasks: tuple[str, ...], after_stem: bool, after_last: bool):
        super().__init__(backbone, tasks)
        any_backbone = self.own_backbone(tasks[0])
        _, *states = probe(any_backbone)
        end = len(states) - int(not after_last and len(states) > 1)
        self.mixed_stages = range(int(any_backbone.has_stem and not after_stem), end)
        self.units: Any = nn.ModuleList(
            nn.ModuleList(self.unit(int(x.shape[1]), len(tasks))
                          for x in (maps_of(state) if stage in self.mixed_stages else []))
            for stage, state in enumerate(states))

    @abstractmethod
    def unit(self, channels: int, tasks: int) -> nn.Module:
        """Build a module that maps a list of maps (b c h w), one per task, to such a list."""

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> TaskFeatures:
        backbones: list[Any] = list(self.backbones.values())
        current: list[Any] = [image] * len(backbones)
        histories: list[list[Any]] = [[] for _ in backbones]
        for stage, units in enumerate(self.units):
            current = [own.stages[stage](state) for own, state in zip(backbones, current, strict=True)]
            if stage in self.mixed_stages:
                current = exchange(units, current)
            for history, state in zip(histories, current, strict=True):
                history.append(state)
        return TaskFeatures({task: self.finish(task, own, history) for task, own, history
                             in zip(self.backbones, backbones, histories, strict=True)})

    def finish(self, task: str, backbone: Backbone, states: list[Any]) -> Features:
        """A task's pyramid, from its states after the units."""
        return backbone.features(states)


def exchange(units: nn.ModuleList, states: list[Any]) -> list[Any]:
    """Apply the units, one per map of a state, to the states of all tasks."""
    mixed = [unit(list(maps)) for unit, maps in zip(units, zip(*map(maps_of, states), strict=True), strict=True)]
    return [with_maps(state, [maps[task] for maps in mixed]) for task, state in enumerate(states)]


def start_weights(own: float, tasks: int) -> Float[Tensor, "t t"]:
    """Initial mixing weights: ``own`` for a task's own features, the rest split equally among the other tasks. A single
    task gets weight 1."""
    if tasks == 1:
        return torch.ones(1, 1)
    identity = torch.eye(tasks)
    return own * identity + (1 - own) / (tasks - 1) * (1 - identity)


def check_start(own: float, learning_rate_factor: float) -> None:
    """Check the options of units.

    Raises:
        InputError: not a share, or not a positive factor.
    """
    if not 0 <= own <= 1:
        raise InputError("encoder.own", str(own), "a share between 0 and 1", "change --encoder.own")
    if not (learning_rate_factor > 0 and math.isfinite(learning_rate_factor)):
        raise InputError("encoder.learning_rate_factor", str(learning_rate_factor), "a positive number",
                         "change --encoder.learning-rate-factor")
