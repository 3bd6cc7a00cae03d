"""Split: tasks share the first stages of a backbone; each task has its own last stages.

Source: the baseline "Split" of MTAN (Liu, Johns, Davison, CVPR 2019, arXiv 1803.10704), which splits at the heads
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.backbones._base import Backbone
from polyptych.backbones._states import branch_off, maps_of, probe, with_maps
from polyptych.encoders._base import Encoder
from polyptych.errors import InputError
from polyptych.types import Features, TaskFeatures


class Split(Encoder):
    """A trunk with branches, between hard sharing (no private stage) and single networks (all stages private).

    MTAN's three baselines have no private stage: standard is ``--encoder.private 0`` on SegNet, wide the same with
    ``--backbone.bottom-width 1024``, deep with ``--backbone.doubled``. With ``private`` 5, SegNet has a decoder per
    task.

    ``shared`` are the maps of the trunk that tasks read: the one at which they branch, and those of the pyramid.

    Raises:
        InputError: as many private stages as the backbone has, or more.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Encoder.Config):
        private: int = 1
        """Number of final stages that each task has to itself."""

    def __init__(self, config: Config, *, backbone: Backbone.Config, tasks: tuple[str, ...]):
        super().__init__()
        first = backbone.build()
        number = len(first.stages)
        if not 0 <= config.private < number:
            raise InputError("encoder.private", str(config.private), f"0 to {number - 1}, of the {number} stages of "
                             "this backbone", "change --encoder.private, or choose --encoder single")
        self.spec = dict.fromkeys(tasks, first.spec)
        self.multiple, self.mean, self.std = first.multiple, first.mean, first.std
        at = number - config.private
        _, *states = probe(first)
        self.read = sorted({at - 1, *(i for i in _read_states(first, states) if i < at)})
        self.tasks, self.parted = tasks, config.private > 0
        self.trunk = nn.ModuleList(list(first.stages)[:at])
        branches = [first, *(backbone.build() for _ in tasks[1:])] if self.parted else [first]
        for branch in branches:  # the last stages, and how a backbone makes features of its states
            branch.stages = nn.ModuleList(list(branch.stages)[at:])
        self.branches = nn.ModuleList(branches)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> TaskFeatures:
        state: Any = image
        common = []
        for stage in self.trunk:
            state = stage(state)
            common.append(branch_off(state))
        features = [self._follow(branch, common) for branch in self.branches]
        return TaskFeatures(dict(zip(self.tasks, features if self.parted else features * len(self.tasks), strict=True)),
                            shared=tuple(x for i in self.read for x in maps_of(common[i])))

    @staticmethod
    def _follow(branch: Any, common: list[Any]) -> Features:
        """The pyramid of a task, continued from the states of the trunk."""
        states = list(common)
        for stage in branch.stages:
            states.append(stage(states[-1]))
        return branch.features(states)


def _read_states(backbone: Backbone, states: list[Any]) -> list[int]:
    """Indices of the states that the pyramid depends on, found by gradients."""
    with torch.enable_grad():
        watched = [with_maps(state, [x.detach().requires_grad_() for x in maps_of(state)]) for state in states]
        total = torch.stack([x.sum() for x in backbone.features(watched).maps]).sum()
        leaves = [(i, x) for i, state in enumerate(watched) for x in maps_of(state)]
        gradients = torch.autograd.grad(total, [x for _, x in leaves], allow_unused=True)
    return [i for (i, _), gradient in zip(leaves, gradients, strict=True) if gradient is not None]
