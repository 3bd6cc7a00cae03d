"""EMA-Net: initial predictions, whose features are exchanged between similar positions of all tasks (CTAL).

Source: Sinodinos, Armanfard, WACV 2025, arXiv 2401.11124
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from polyptych.decoders._base import Decoder
from polyptych.decoders._blocks import BottleneckHead, Fusion, common_spec, for_each_pyramid
from polyptych.decoders._cross_task import CrossTaskConfig, CrossTaskHeads
from polyptych.types import Auxiliary, FeatureSpec, Output, TaskFeatures


class EMANet(Decoder):
    """The single-scale network. ``final[task]`` has twice the resolution of the finest map; the initial predictions,
    at the finest map's, are auxiliary with weight 1.

    All scales are fused at the finest resolution, an initial head computes each task's features and initial prediction,
    and :mod:`polyptych.decoders._cross_task` does the rest.

    Raises:
        InputError: a bad option, or tasks whose pyramids differ in shape.
    """

    refines = True

    @dataclass(frozen=True, kw_only=True)
    class Config(CrossTaskConfig):
        initial_width: int = 256
        """Channels of a task's features before they are compared; must be a multiple of 4."""

        def __post_init__(self) -> None:
            super().__post_init__()
            self.require("initial_width", self.initial_width > 0 and self.initial_width % 4 == 0,
                         "a positive multiple of 4")

    def __init__(self, config: Config, *, features: dict[str, FeatureSpec], channels: dict[str, int]):
        super().__init__()
        spec = common_spec(features, "ema_net")
        self.fuse = Fusion(spec)
        self.initial = nn.ModuleDict({
            task: BottleneckHead(self.fuse.channels, config.initial_width, c if config.deep_supervision else 0)
            for task, c in channels.items()})
        self.refine = CrossTaskHeads(config, channels_in=config.initial_width, channels=channels, spec=spec)

    def forward(self, features: TaskFeatures) -> Output:
        fused = for_each_pyramid(self.fuse, features)
        refined, initial = {}, {}
        for task, head in self.initial.items():
            refined[task], prediction = head(fused[task])
            if prediction is not None:
                initial[task] = prediction
        return Output(self.refine(refined), [Auxiliary(initial)] if initial else [])
