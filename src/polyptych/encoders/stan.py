"""STAN: single-task networks with attention, the control that separates MTAN's sharing from its added capacity.

Source: Liu, Johns, Davison, CVPR 2019, arXiv 1803.10704
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from polyptych.backbones._base import Backbone
from polyptych.encoders._base import Encoder
from polyptych.encoders.mtan import Mtan
from polyptych.types import TaskFeatures


class Stan(Encoder):
    """A separate MTAN for every task; nothing is shared, so ``shared`` is empty."""

    def __init__(self, config: Encoder.Config, *, backbone: Backbone.Config, tasks: tuple[str, ...]):
        super().__init__()
        encoders = {task: Mtan.Config().build(backbone=backbone, tasks=(task,)) for task in tasks}
        self.encoders = nn.ModuleDict(encoders)
        self.spec = {task: encoder.spec[task] for task, encoder in encoders.items()}
        any_encoder = encoders[tasks[0]]
        self.multiple, self.mean, self.std = any_encoder.multiple, any_encoder.mean, any_encoder.std

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> TaskFeatures:
        return TaskFeatures({task: encoder(image)[task] for task, encoder in self.encoders.items()})
