"""A backbone of its own for every task: the single-task reference.

With plain heads and equal weights the tasks train as if each had a run of its own (they see the same batches), which
is what delta_mtl compares with.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from polyptych.backbones._base import Backbone
from polyptych.encoders._base import Encoder
from polyptych.types import TaskFeatures


class Single(Encoder):
    """One backbone per task; nothing is shared, so ``shared`` is empty."""

    def __init__(self, config: Encoder.Config, *, backbone: Backbone.Config, tasks: tuple[str, ...]):
        super().__init__()
        backbones = {task: backbone.build() for task in tasks}
        self.backbones = nn.ModuleDict(backbones)
        self.spec = {task: own.spec for task, own in backbones.items()}
        any_backbone = backbones[tasks[0]]
        self.multiple, self.mean, self.std = any_backbone.multiple, any_backbone.mean, any_backbone.std

    def own_backbone(self, task: str) -> Backbone:
        own = self.backbones[task]
        assert isinstance(own, Backbone)
        return own

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> TaskFeatures:
        return TaskFeatures({task: own(image) for task, own in self.backbones.items()})
