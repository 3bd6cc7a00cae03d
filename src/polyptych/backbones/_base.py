"""The contract of a backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from polyptych.component import Catalog, Component
from polyptych.types import Features, FeatureSpec

CATALOG = Catalog("backbone", "polyptych.backbones")


class Backbone(nn.Module, Component, ABC):
    """A feature extractor that can be run whole or stage by stage.

    A *state* is whatever passes from one stage to the next: a tensor, or a list of them where branches run in
    parallel (HRNet). ``features`` turns the states after all stages into the pyramid, so that
    ``forward(x) == features(states of the stages run in order)`` always holds.

    Attributes:
        spec: channels and strides of the pyramid, fine to coarse.
        stages: the stages in order; the first takes the image.
        multiple: height and width of the input must be multiples of this; the network pads to it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Component.Config):
        catalog = CATALOG

        def build(self) -> Backbone:
            return self.owner(self)  # type: ignore[return-value,call-arg]

    spec: FeatureSpec
    stages: Sequence[nn.Module]
    multiple: int

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Features:
        states, state = [], image
        for stage in self.stages:
            state = stage(state)
            states.append(state)
        return self.features(states)

    @abstractmethod
    def features(self, states: list[Any]) -> Features:
        """The pyramid from the states after each stage."""
