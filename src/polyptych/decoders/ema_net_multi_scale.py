"""Multi-scale EMA-Net: MTI-Net's predictions at every scale, fused per task, before tasks exchange features (CTAL).

Source: Sinodinos, Armanfard, WACV 2025, arXiv 2401.11124
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from polyptych.decoders._base import Decoder
from polyptych.decoders._blocks import Fusion, common_spec
from polyptych.decoders._cross_task import CrossTaskConfig, CrossTaskHeads
from polyptych.decoders.mti_net import ScaleByScale
from polyptych.types import Auxiliary, Features, FeatureSpec, Output, TaskFeatures


class EMANetMultiScale(Decoder):
    """``final[task]`` has twice the resolution of the finest map. The initial predictions of every scale, at that
    scale's resolution, are auxiliary; their weights sum to 1, as in the authors' code.

    The features of :class:`polyptych.decoders.mti_net.ScaleByScale` are fused over all scales, separately for every
    task, and :mod:`polyptych.decoders._cross_task` does the rest: tasks exchange features once, not at every scale.

    Raises:
        InputError: a bad option, or tasks whose pyramids differ in shape.
    """

    refines = True

    @dataclass(frozen=True, kw_only=True)
    class Config(CrossTaskConfig):
        cross_scale: bool = True
        """Fuse each task's features from all scales before comparing them; otherwise the features of the finest scale
        are compared (ablation)."""
        softmax: Literal["tasks", "published"] = "tasks"
        """Dimension over which the masks of feature propagation sum to one: the tasks (the MTI-Net paper), or
        consecutive channels, mostly of one task (the published code of both)."""

        def parts(self) -> dict[str, str]:
            return {"CTAL": "affinity", "fusion of scales": "cross_scale", "deep supervision": "deep_supervision"}

    def __init__(self, config: Config, *, features: dict[str, FeatureSpec], channels: dict[str, int]):
        super().__init__()
        spec = common_spec(features, "ema_net_multi_scale")
        self.initial = ScaleByScale(spec, channels, config.softmax)
        if not config.deep_supervision:
            # Nothing is predicted from the scales: weights that nobody supervises would never learn.
            self.initial.predict = nn.ModuleList(nn.ModuleDict() for _ in spec.channels)
        self.fuse = nn.ModuleDict({task: Fusion(spec) for task in channels}) if config.cross_scale else None
        channels_in = sum(spec.channels) if config.cross_scale else spec.channels[0]
        self.refine = CrossTaskHeads(config, channels_in=channels_in, channels=channels, spec=spec)

    def forward(self, features: TaskFeatures) -> Output:
        scales, predictions = self.initial(features)
        fused = scales[0]
        if self.fuse is not None:
            fused = {task: fuse(Features(tuple(scale[task] for scale in scales))) for task, fuse in self.fuse.items()}
        return Output(self.refine(fused), [Auxiliary(initial, 1 / len(scales)) for initial in predictions if initial])
