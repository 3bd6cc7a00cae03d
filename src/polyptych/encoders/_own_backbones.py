"""A backbone of its own for every task."""

from __future__ import annotations

from torch import nn

from polyptych.backbones._base import Backbone
from polyptych.encoders._base import Encoder


class OwnBackbones(Encoder):
    """Builds a backbone per task; whether and how they meet is up to the encoder."""

    def __init__(self, backbone: Backbone.Config, tasks: tuple[str, ...]):
        super().__init__()
        backbones = {task: backbone.build() for task in tasks}
        self.backbones = nn.ModuleDict(backbones)
        self.spec = {task: own.spec for task, own in backbones.items()}
        first = backbones[tasks[0]]
        self.multiple, self.mean, self.std = first.multiple, first.mean, first.std

    def own_backbone(self, task: str) -> Backbone:
        own = self.backbones[task]
        assert isinstance(own, Backbone)
        return own
