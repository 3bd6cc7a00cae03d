"""Base of all decoders: feature pyramids in, raw predictions for every task out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from polyptych.component import Catalog, Component
from polyptych.errors import InputError
from polyptych.types import FeatureSpec, Output, TaskFeatures

CATALOG: Catalog[Decoder] = Catalog("decoder", "polyptych.decoders")


class Decoder(nn.Module, Component, ABC):
    """How predictions are made, and refined by each other.

    Attributes:
        refines: tasks read each other's features here, so that even with a backbone per task the networks are not
            single-task.
    """

    refines: ClassVar[bool] = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Component.Config):
        catalog = CATALOG

        def build(self, *, features: dict[str, FeatureSpec], channels: dict[str, int]) -> Decoder:
            """``features`` describes each task's pyramid, ``channels`` says how many each task predicts."""
            return self.owner(self, features=features, channels=channels)

        def require(self, option: str, holds: bool, needs: str, do: str = "") -> None:
            """Refuse the value of an option unless something ``holds``; with NaN, no comparison does."""
            if not holds:
                raise InputError(f"decoder.{option}", str(getattr(self, option)), needs,
                                 do or f"change --decoder.{option.replace('_', '-')}")

        def ablation(self) -> dict[str, Decoder.Config]:
            """The ablation of this decoder: a description and a configuration for every step, from the baseline to the
            full decoder, then variants of it. Empty if its paper has no ablation."""
            return {}

    def own_head(self, task: str) -> nn.Module | None:
        """The module that makes this task's prediction, so that trained weights can be copied from or into it; None if
        tasks interact."""
        return None

    @abstractmethod
    def forward(self, features: TaskFeatures) -> Output:
        """Predictions at any resolution; the network resizes ``final`` to the image."""
