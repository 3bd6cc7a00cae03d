"""One independent head per task, on that task's features.

The decoder of the single-task reference, of hard parameter sharing, and of every encoder-focused method: tasks exchange
nothing after the encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from polyptych.decoders._base import Decoder
from polyptych.decoders._blocks import ConvolutionHead, DeepLabHead, FPNHead, FusedHead, Head, LinearHead
from polyptych.decoders._probes import Binned, DPTHead, ProbeHead
from polyptych.errors import InputError
from polyptych.types import FeatureSpec, Output, TaskFeatures

KINDS: dict[str, type[Head]] = {"fused": FusedHead, "aspp": DeepLabHead, "fpn": FPNHead,
                                "convolution": ConvolutionHead, "linear": LinearHead, "dpt": DPTHead,
                                "probe": ProbeHead}


class Heads(Decoder):
    """``final[task]`` has the resolution of the finest map (``fused``, ``fpn``, ``convolution``), of the coarsest
    (``aspp``, ``linear``, ``probe``), or half that of the image (``dpt``).

    Raises:
        InputError: a negative width, or bins for a task of several channels.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        head: Literal["fused", "aspp", "fpn", "convolution", "linear", "dpt", "probe"] = "fused"
        """Type of head: HRNet's fusion of all scales, DeepLab's atrous pooling on the last scale, a feature pyramid
        network, a 3x3 convolution on all scales (the baseline of ATRC and DeMT), a linear map of the last scale
        (SegNet, classification), DPT's reassembling of a transformer's maps at several depths (with
        --backbone.vit-pyramid taps), or the linear probe with which DINOv2 and DINOv3 are evaluated."""
        width: int = 0
        """Inner channels of a head (0: the published number, which is the sum of all scales, 256, 128, a quarter of the
        sum, none in a linear head or a probe, or 256 in DPT)."""
        bins: int = 0
        """Predict the tasks in binned as a weighted mean of this many evenly spaced values (0: as a single number; 256
        in DINOv2 and DINOv3)."""
        binned: tuple[str, ...] = ("depth",)
        """Single-channel tasks that use bins."""
        bins_range: tuple[float, float] = (0.001, 10.0)
        """First and last of the evenly spaced values."""
        bins_form: Literal["value", "logarithm"] = "value"
        """Predict the mean value, or its logarithm, as logarithmic losses expect (--tasks.depth.loss silog)."""

    def __init__(self, config: Config, *, features: dict[str, FeatureSpec], channels: dict[str, int]):
        super().__init__()
        config.require("width", config.width >= 0, "a positive number, or 0 for the published one")
        kind = KINDS[config.head]
        self.gather = kind.gather
        self.heads = nn.ModuleDict({task: self._head(config, task, features[task], channels[task])
                                    for task in channels})

    @staticmethod
    def _head(config: Config, task: str, spec: FeatureSpec, channels: int) -> nn.Module:
        kind = KINDS[config.head]
        if not config.bins or task not in config.binned:
            return kind(spec, channels, config.width)
        least, most = config.bins_range
        if config.bins < 2 or not 0 < least < most:
            raise InputError("decoder.bins", f"{config.bins} from {least:g} to {most:g}", "2 or more from a positive "
                             "number to a larger one", "change --decoder.bins or --decoder.bins-range")
        if channels != 1:
            raise InputError("decoder.binned", f"'{task}', which has {channels} channels", "tasks of one channel",
                             "leave it out")
        return Binned(kind(spec, config.bins, config.width), config.bins, least, most, config.bins_form)

    def own_head(self, task: str) -> nn.Module:
        return self.heads[task]

    def forward(self, features: TaskFeatures) -> Output:
        final, previous, gathered = {}, None, None
        for task, head in self.heads.items():
            if features[task] is not previous:  # tasks that share a pyramid share the part without parameters
                previous = features[task]
                gathered = self.gather(previous)
            final[task] = head(gathered)
        return Output(final)
