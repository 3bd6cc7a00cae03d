"""One independent head per task, on that task's features.

The decoder of the single-task reference, of hard parameter sharing and of every encoder-focused method: nothing
passes between tasks after the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from polyptych.decoders._base import Decoder
from polyptych.decoders._blocks import ConvolutionHead, DeepLabHead, FPNHead, FusedHead, Head, LinearHead
from polyptych.errors import InputError
from polyptych.types import FeatureSpec, Output, TaskFeatures

KINDS: dict[str, type[Head]] = {"fused": FusedHead, "aspp": DeepLabHead, "fpn": FPNHead,
                                "convolution": ConvolutionHead, "linear": LinearHead}


class Heads(Decoder):
    """``final[task]`` has the resolution of the finest map (``fused``, ``fpn``, ``convolution``) or of the
    coarsest (``aspp``, ``linear``).

    Raises:
        InputError: a negative width.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        head: Literal["fused", "aspp", "fpn", "convolution", "linear"] = "fused"
        """Type of head: HRNet's fusion of all scales, DeepLab's atrous pooling on the last scale, a feature pyramid
        network, a 3x3 convolution on all scales (the baseline of ATRC and DeMT), or a linear map of the last scale
        (SegNet, classification)."""
        width: int = 0
        """Inner channels of a head (0: the published number, which is the sum of all scales, 256, 128, a quarter of the
        sum, or none in a linear head)."""

    def __init__(self, config: Config, *, features: dict[str, FeatureSpec], channels: dict[str, int]):
        super().__init__()
        if config.width < 0:
            raise InputError("decoder.width", str(config.width), "a positive number, or 0 for the published one",
                             "change --decoder.width")
        kind = KINDS[config.head]
        self.gather = kind.gather
        self.heads = nn.ModuleDict({task: kind(features[task], channels[task], config.width) for task in channels})

    def own_head(self, task: str) -> nn.Module:
        return self.heads[task]

    def forward(self, features: TaskFeatures) -> Output:
        final, previous, gathered = {}, None, None
        for task, head in self.heads.items():
            if features[task] is not previous:  # tasks that share a pyramid share what has no parameters
                previous = features[task]
                gathered = self.gather(previous)
            final[task] = head(gathered)
        return Output(final)
