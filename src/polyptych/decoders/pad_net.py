"""PAD-Net: initial predictions of all tasks, whose features refine each other through gates.

Source: Xu, Ouyang, Wang, Sebe, CVPR 2018, arXiv 1805.04409
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from polyptych.decoders._base import Decoder
from polyptych.decoders._blocks import (
    BottleneckHead,
    Distillation,
    Fusion,
    common_spec,
    for_each_pyramid,
    with_a_final_head,
)
from polyptych.types import Auxiliary, FeatureSpec, Output, TaskFeatures


class PADNet(Decoder):
    """All scales fused at the finest resolution; an initial head per task, whose features :class:`Distillation` (the
    paper's module C) enriches with those of the other tasks; and a final head per task. All at the resolution of the
    finest map.

    The layers are those of the published code for HRNet (the survey's); the paper has a ResNet-50 with deconvolutions
    to full resolution. By default, the gate is that of the paper: one 3x3 convolution per receiving task, whereas that
    code has one per pair. Three tasks then have 3 gates instead of 6, and HRNet-W18-small-v2 on NYUv2 (13 classes,
    depth, normals) 10,307,968 parameters, not the published 12,077,440 (``gate="source"``).

    Raises:
        InputError: pyramids of different shapes, a width that is not a multiple of 4, or unknown auxiliary tasks, or no
            task left besides them.
    """

    refines = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        gate: Literal["target", "source"] = "target"
        """Whose features control the gate: those of the receiving task (the paper) or of the sending task (the survey's
        code)."""
        auxiliary_tasks: tuple[str, ...] = ()
        """Tasks that only help the others: predicted and supervised, but not refined. Their final prediction is the
        initial one."""
        width: int = 256
        """Channels of every task's features; must be a multiple of 4."""

        def __post_init__(self) -> None:
            self.require("width", self.width >= 4 and self.width % 4 == 0, "a positive multiple of 4")

    def __init__(self, config: Config, *, features: dict[str, FeatureSpec], channels: dict[str, int]):
        super().__init__()
        refined, width = with_a_final_head(config.auxiliary_tasks, channels), config.width
        self.fuse = Fusion(common_spec(features, "pad_net"))
        self.initial = nn.ModuleDict({task: BottleneckHead(self.fuse.channels, width, c)
                                      for task, c in channels.items()})
        self.distill = Distillation(refined, tuple(channels), width, config.gate)
        self.heads = nn.ModuleDict({task: BottleneckHead(width, width, channels[task]) for task in refined})

    def forward(self, features: TaskFeatures) -> Output:
        fused = for_each_pyramid(self.fuse, features)
        initial = {task: head(fused[task]) for task, head in self.initial.items()}
        distilled = self.distill({task: own for task, (own, _) in initial.items()})
        final = {task: prediction for task, (_, prediction) in initial.items()}
        auxiliary = Auxiliary({task: final[task] for task in self.heads})
        return Output(final | {task: head(distilled[task])[1] for task, head in self.heads.items()}, [auxiliary])
