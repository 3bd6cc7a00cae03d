"""Hard parameter sharing: one backbone for all tasks.

Source: Caruana, Machine Learning 1997 (the baseline of the survey of Vandenhende et al., TPAMI 2021, arXiv 2004.13379)
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from polyptych.backbones._base import Backbone
from polyptych.encoders._base import Encoder
from polyptych.types import Features, TaskFeatures


class Shared(Encoder):
    """Every task gets the same :class:`Features` object; its maps are the cut between shared and private parts."""

    def __init__(self, config: Encoder.Config, *, backbone: Backbone.Config, tasks: tuple[str, ...]):
        super().__init__()
        self.tasks = tasks
        self.backbone = backbone.build()
        self.spec = dict.fromkeys(tasks, self.backbone.spec)
        self.multiple, self.mean, self.std = self.backbone.multiple, self.backbone.mean, self.backbone.std

    def own_backbone(self, task: str) -> Backbone | None:
        return self.backbone if self.tasks == (task,) else None

    def frozen_maps(self, image: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, ...]:
        return self.backbone.trunk_maps(image)

    def from_frozen_maps(self, maps: tuple[Tensor, ...]) -> TaskFeatures:
        features = Features(tuple(x.view_as(x) for x in self.backbone.finish(maps).maps))
        return TaskFeatures(dict.fromkeys(self.tasks, features), shared=features.maps)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> TaskFeatures:
        features = self.backbone(image)
        return TaskFeatures(dict.fromkeys(self.tasks, features), shared=features.maps)
