"""A separate backbone for every task: the single-task reference.

With plain heads and equal weights, tasks train as if in separate runs (on the same batches); this is the reference for
delta_mtl.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from polyptych.backbones._base import Backbone
from polyptych.encoders._base import Encoder, OwnBackbones
from polyptych.types import TaskFeatures


class Single(OwnBackbones):
    """One backbone per task; nothing is shared, so ``shared`` is empty."""

    def __init__(self, config: Encoder.Config, *, backbone: Backbone.Config, tasks: tuple[str, ...]):
        super().__init__(backbone, tasks)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> TaskFeatures:
        return TaskFeatures({task: own(image) for task, own in self.backbones.items()})
