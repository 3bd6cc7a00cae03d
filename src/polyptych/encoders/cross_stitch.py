"""Cross-stitch networks: a network per task, whose features are mixed linearly after every stage.

Source: Misra, Shrivastava, Gupta, Hebert, CVPR 2016, arXiv 1604.03539
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from polyptych.backbones._base import Backbone
from polyptych.encoders._base import Encoder
from polyptych.encoders._side_by_side import SideBySide, check_start, start_weights


class CrossStitch(SideBySide):
    """After a stage, task i continues with x_i' = sum_j w_ij x_j, where w is learned.

    The paper starts from networks that were trained for one task each (``--start RUN``, a run of ``single``); training
    from scratch is possible, but not what was published. With ``own`` 1, the networks start exactly as those of
    ``single``.

    The survey (Vandenhende et al., TPAMI 2021, arXiv 2004.13379) mixes after the four layers of a ResNet, not after its
    stem, with a weight for every channel. MTAN's comparison has one weight for every source, the same for all targets
    and 1 at the start (``--encoder.weights source``): all tasks continue with the same sum.

    Raises:
        InputError: ``own`` is not between 0 and 1, or the learning-rate factor is not positive.
    """

    tuned = ("own", (0.7, 0.5))

    @dataclass(frozen=True, kw_only=True)
    class Config(Encoder.Config):
        weights: Literal["channel", "scalar", "source"] = "channel"
        """Granularity of the learned weights: one per channel and pair of tasks, one per pair, or one per source
        task."""
        own: float = 0.9
        """Initial weight of a task's own features; the others share the rest equally (survey: 0.9 and 0.1 for the two
        tasks of NYUD, 0.8 and four times 0.05 on PASCAL). Not used with source."""
        after_stem: bool = False
        """Also mix after the stem (before the first map of the pyramid)."""
        after_last: bool = True
        """Also mix after the last stage."""
        learning_rate_factor: float = 1.0
        """Multiplies the learning rate of the weights. The survey states 100, for SGD, but its code drops the factor
        after the first epoch, so its numbers correspond to 1. For Adam, use 1: its steps do not depend on the scale."""

    def __init__(self, config: Config, *, backbone: Backbone.Config, tasks: tuple[str, ...]):
        check_start(config.own, config.learning_rate_factor)
        self.config = config
        super().__init__(backbone, tasks, config.after_stem, config.after_last)

    def unit(self, channels: int, tasks: int) -> nn.Module:
        return CrossStitchUnit(channels, tasks, self.config)


class CrossStitchUnit(nn.Module):
    """``weight`` is (target, source, channel) for a weight per channel, (target, source, 1) for one per pair and
    (1, source, 1) for one per source. It has no weight decay: at zero, features would vanish."""

    weight_decay_factor = 0.0

    def __init__(self, channels: int, tasks: int, config: CrossStitch.Config):
        super().__init__()
        self.learning_rate_factor = config.learning_rate_factor
        start = torch.ones(1, tasks) if config.weights == "source" else start_weights(config.own, tasks)
        self.weight = nn.Parameter(start.unsqueeze(-1).repeat(1, 1, channels if config.weights == "channel" else 1))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        mixed = []
        for row in self.weight.to(maps[0].dtype).unsqueeze(-1).unsqueeze(-1):
            result = maps[0] * row[0]
            for x, weight in zip(maps[1:], row[1:], strict=True):
                result = torch.addcmul(result, x, weight)
            mixed.append(result)
        return mixed * (len(maps) // len(mixed))
