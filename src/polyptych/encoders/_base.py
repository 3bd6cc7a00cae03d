"""Base of all encoders: an image in, a feature pyramid for every task out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from polyptych.backbones._base import Backbone
from polyptych.component import Catalog, Component
from polyptych.types import FeatureSpec, TaskFeatures

CATALOG: Catalog[Encoder] = Catalog("encoder", "polyptych.encoders")


class Encoder(nn.Module, Component, ABC):
    """How features are shared between tasks.

    Attributes:
        spec: channels and strides of every task's pyramid, fine to coarse.
        multiple, mean, std: those of the backbone; the network pads and normalizes the image accordingly.
        example: a small timm network that suits this encoder as a backbone, for trying it out.
    """

    example: ClassVar[str] = "test_resnet"

    @dataclass(frozen=True, kw_only=True)
    class Config(Component.Config):
        catalog = CATALOG

        def build(self, *, backbone: Backbone.Config, tasks: tuple[str, ...]) -> Encoder:
            return self.owner(self, backbone=backbone, tasks=tasks)

    spec: dict[str, FeatureSpec]
    multiple: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def own_backbone(self, task: str) -> Backbone | None:
        """The backbone that only this task uses, so that trained weights can be copied from or into it; None if tasks
        share one."""
        return None

    def frozen_maps(self, image: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, ...]:
        """The output of the frozen backbone, from which :meth:`from_frozen_maps` computes the features with everything
        that is trained. Encoders with parts of their own before or inside the backbone do not implement this."""
        raise NotImplementedError

    def from_frozen_maps(self, maps: tuple[Tensor, ...]) -> TaskFeatures:
        """The features, computed from :meth:`frozen_maps`."""
        raise NotImplementedError

    @abstractmethod
    def forward(self, image: Float[Tensor, "b 3 h w"]) -> TaskFeatures:
        """Pyramids for all tasks, with ``shared`` set to the cut between what all tasks share and what follows."""


class OwnBackbones(Encoder):
    """Builds a backbone per task; whether and how they interact is up to the encoder."""

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
