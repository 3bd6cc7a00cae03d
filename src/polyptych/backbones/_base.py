"""The contract of a backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from polyptych.component import Catalog, Component
from polyptych.types import Features, FeatureSpec

CATALOG: Catalog[Backbone] = Catalog("backbone", "polyptych.backbones")


class Backbone(nn.Module, Component, ABC):
    """A feature extractor that can be run whole or stage by stage.

    A *state* is whatever passes from one stage to the next: a tensor, or a list of them where branches run in
    parallel (HRNet). ``features`` turns the states after all stages into the pyramid, so that
    ``forward(x) == features(states of the stages run in order)`` always holds.

    Attributes:
        spec: channels and strides of the pyramid, fine to coarse.
        stages: the stages in order; the first takes the image.
        multiple: height and width of the input must be multiples of this; the network pads to it.
        mean, std: of the RGB input in [0, 1] that the weights expect (ImageNet's unless the weights say otherwise).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Component.Config):
        catalog = CATALOG

        def build(self) -> Backbone:
            return self.owner(self)

        def without_weights(self) -> Backbone.Config:
            """The same network, not fetching any weights, for when a checkpoint is about to fill it."""
            return self

    spec: FeatureSpec
    stages: nn.ModuleList
    multiple: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Features:
        """``image`` is normalized by ``mean`` and ``std`` and its size a multiple of ``multiple``."""
        states, state = [], image
        for stage in self.stages:
            state = stage(state)
            states.append(state)
        return self.features(states)

    @abstractmethod
    def features(self, states: list[Any]) -> Features:
        """The pyramid from the states after each stage."""
