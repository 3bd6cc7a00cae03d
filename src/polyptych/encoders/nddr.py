"""NDDR-CNN: a network per task, whose features are concatenated and reduced again after every stage.

Source: Gao, Ma, Zhao, Liu, Yuille, CVPR 2019, arXiv 1801.08297
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polyptych.backbones._base import Backbone
from polyptych.backbones._states import probe
from polyptych.decoders._blocks import SingleValueBatchNorm
from polyptych.encoders._base import Encoder
from polyptych.encoders._side_by_side import SideBySide, check_start, start_weights
from polyptych.errors import InputError
from polyptych.ops.resize import resize
from polyptych.types import Features


class Nddr(SideBySide):
    """After a stage, task i continues with ReLU(BatchNorm(W_i [x_1; ...; x_T])), where W_i is a 1x1 convolution without
    bias from T times the channels back to the channels. W_i is initialized to multiples of the identity, so that it
    begins as a cross-stitch unit; training then also mixes channels.

    The paper starts from networks that were trained for one task each (``--start RUN``, a run of ``single``). Weight
    decay of W, which the paper treats as part of the layer, is that of the optimizer, as for any convolution; the
    authors train with SGD at 1e-3, 100 times that for the units, and a weight decay of 2.5e-4.

    The shortcut variant resizes the outputs of all units to the coarsest map, concatenates them with it, and reduces
    them to its channels (1x1 convolution, BatchNorm, activation). How the paper initializes that convolution is unknown
    to us; here it begins as the identity on the coarsest map.

    Raises:
        InputError: ``own`` or the momentum is not between 0 and 1, or the learning-rate factor is not positive.
    """

    tuned = ("own", (0.7, 0.5))

    @dataclass(frozen=True, kw_only=True)
    class Config(Encoder.Config):
        own: float = 0.9
        """Initial weight of a task's own features; the others share the rest equally (survey: 0.9 and 0.1 for the two
        tasks of NYUD, 0.8 and four times 0.05 on PASCAL)."""
        shortcut: bool = False
        """Feed the results of all units into the coarsest map (NDDR-CNN-Shortcut)."""
        activation: Literal["relu", "none"] = "relu"
        """Activation after a unit. ReLU is published, for networks whose stages end with one; none keeps the negative
        features of transformers, ConvNeXts and linear bottlenecks (MobileNet, EfficientNet)."""
        after_stem: bool = True
        """Also mix after the stem (before the first map of the pyramid)."""
        momentum: float = 0.05
        """Momentum of BatchNorm in the units."""
        learning_rate_factor: float = 1.0
        """Multiplies the learning rate of the units: 100 in the paper, for SGD. The survey also states 100, but its
        code drops the factor after the first epoch, so its numbers correspond to 1, which is right for Adam."""

    def __init__(self, config: Config, *, backbone: Backbone.Config, tasks: tuple[str, ...]):
        check_start(config.own, config.learning_rate_factor)
        if not 0 <= config.momentum <= 1:
            raise InputError("encoder.momentum", str(config.momentum), "a share between 0 and 1",
                             "change --encoder.momentum")
        self.config = config
        super().__init__(backbone, tasks, config.after_stem, after_last=True)
        self.shortcuts = nn.ModuleDict(self._shortcuts(tasks) if config.shortcut else {})

    def unit(self, channels: int, tasks: int) -> nn.Module:
        return NddrUnit([start_weights(self.config.own, tasks)[task].tolist() for task in range(tasks)], channels,
                        self.config)

    def _shortcuts(self, tasks: tuple[str, ...]) -> dict[str, nn.Module]:
        backbone = self.backbones[tasks[0]]
        assert isinstance(backbone, Backbone)
        before = [x.shape[1] for x in self._early(backbone, probe(backbone)[1:])]
        channels = self.spec[tasks[0]].channels[-1]
        reductions: dict[str, nn.Module] = {}
        for task in tasks:
            start = torch.zeros(channels, sum(before) + channels)
            start[:, -channels:] = torch.eye(channels)
            reductions[task] = Reduction(start, self.config)
        return reductions

    def _early(self, backbone: Backbone, states: list[Any]) -> list[Tensor]:
        """The outputs of all units before those of the last stage."""
        return [x for stage in self.mixed_stages[:-1] for x in backbone.grids(states[stage])]

    def finish(self, task: str, backbone: Backbone, states: list[Any]) -> Features:
        maps = backbone.features(states).maps
        if not self.config.shortcut:
            return Features(maps)
        size = (maps[-1].shape[-2], maps[-1].shape[-1])
        early = [resize(x, size) for x in self._early(backbone, states)]
        return Features((*maps[:-1], self.shortcuts[task](torch.cat([*early, maps[-1]], dim=1))))


class Reduction(nn.Module):
    """1x1 convolution without bias, BatchNorm, activation. ``start``: initial weights (channels out, channels in)."""

    def __init__(self, start: Tensor, config: Nddr.Config):
        super().__init__()
        self.learning_rate_factor = config.learning_rate_factor
        channels, channels_in = start.shape
        self.mix = nn.Conv2d(channels_in, channels, 1, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(start[..., None, None])
        self.norm = SingleValueBatchNorm(channels, momentum=config.momentum)
        self.activation = nn.ReLU() if config.activation == "relu" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.mix(x)))


class NddrUnit(nn.Module):
    """The reductions of all tasks at one place. ``starts[i][j]``: initial weight of task j's features for task i."""

    def __init__(self, starts: list[list[float]], channels: int, config: Nddr.Config):
        super().__init__()
        identity = torch.eye(channels)
        self.reductions = nn.ModuleList(Reduction(torch.cat([share * identity for share in row], dim=1), config)
                                        for row in starts)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        stacked = torch.cat(maps, dim=1)
        return [reduction(stacked) for reduction in self.reductions]
