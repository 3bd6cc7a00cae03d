"""Base of all backbones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from polyptych.backbones._freezing import freeze, number_stages
from polyptych.backbones._states import maps_of
from polyptych.component import Catalog, Component
from polyptych.errors import InputError
from polyptych.ranges import check_range
from polyptych.types import Features, FeatureSpec

CATALOG: Catalog[Backbone] = Catalog("backbone", "polyptych.backbones")


class Backbone(nn.Module, Component, ABC):
    """A feature extractor that can be run whole or stage by stage.

    A *state* is whatever passes from one stage to the next: a tensor, or a tuple or list of tensors if branches run in
    parallel (HRNet). Its floating-point tensors are maps (b c h w); others are private to the network that made them
    (unpooling indices). A stage must not modify its input state in place, because others may read it too. ``features``
    turns the states after all stages into the pyramid, so that ``forward(x) == features(states of the stages run in
    order)`` always holds.

    Attributes:
        spec: channels and strides of the pyramid, fine to coarse.
        stages: the stages in order; the first takes the image.
        has_stem: the first stage has no map in the pyramid; it only brings the image to the resolution of the second.
        multiple: height and width of the input must be multiples of this; the network pads to it.
        mean, std: of the RGB input in [0, 1] that the weights expect (ImageNet's unless the weights say otherwise).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Component.Config):
        catalog = CATALOG

        freeze: Literal["none", "all", "all_but_norms", "stages", "blocks"] = "none"
        """Which part of the backbone to freeze: nothing, everything, all but its normalization layers, or its first
        stages or blocks with the stem. Frozen parts stay in evaluation mode (batch statistics, dropout), except with
        all_but_norms. A pyramid or norms that are added to pretrained weights are always trained."""
        freeze_first: int = 0
        """Number of stages or blocks to freeze."""
        freeze_until: int = 0
        """Number of steps after which everything is trained (0: never)."""

        def __post_init__(self) -> None:
            check_range("--backbone.freeze-until", self.freeze_until, 0, do="0 keeps it frozen")
            if self.freeze_first and self.freeze not in ("stages", "blocks"):
                raise InputError("--backbone.freeze-first", str(self.freeze_first), "--backbone.freeze stages or "
                                 "blocks, which it counts", "add that, or leave it out")
            if self.freeze_until and self.freeze == "none":
                raise InputError("--backbone.freeze-until", f"{self.freeze_until}, but nothing is frozen",
                                 "a part to keep frozen until then", "add --backbone.freeze all, or leave it out")

        def build(self) -> Backbone:
            backbone: Backbone = self.owner(self)
            number_stages(backbone)
            if self.freeze != "none":
                freeze(backbone, self.freeze, self.freeze_first, self.freeze_until)
            return backbone

        def without_weights(self) -> Backbone.Config:
            """The same network without pretrained weights, for when a checkpoint will be loaded anyway."""
            return self

    spec: FeatureSpec
    stages: nn.ModuleList
    has_stem: bool = False
    multiple: int
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Features:
        """The pyramid of an image that is normalized by ``mean`` and ``std``, with sides that are multiples of
        ``multiple``.

        The maps branch off the path through the stages, so that the gradient with respect to one map does not include
        the path through the next (balancers cut the network there).
        """
        return Features(tuple(x.view_as(x) for x in self.features(self.run(image)).maps))

    def run(self, image: Float[Tensor, "b 3 h w"]) -> list[Any]:
        """The state after each stage."""
        states, state = [], image
        for stage in self.stages:
            state = stage(state)
            states.append(state)
        return states

    def trunk_maps(self, image: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, ...]:
        """The maps of the stages alone, from which :meth:`finish` makes the pyramid."""
        return self.features(self.run(image)).maps

    def finish(self, maps: tuple[Tensor, ...]) -> Features:
        """The pyramid, computed from :meth:`trunk_maps`."""
        return Features(maps)

    def grids(self, state: Any) -> list[Tensor]:
        """The maps of a state that are grids over the image: its first ones, usually all."""
        return maps_of(state)

    @abstractmethod
    def features(self, states: list[Any]) -> Features:
        """The pyramid from the states after each stage."""
