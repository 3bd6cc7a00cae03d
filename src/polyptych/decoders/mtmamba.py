"""MTMamba and MTMamba++: state space models scan every task's map, and let tasks read each other, scale by scale.

Source: Lin et al., ECCV 2024, arXiv 2407.02228; Lin et al., TPAMI 2025, arXiv 2408.15101
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from timm.layers import trunc_normal_
from torch import Tensor, nn

from polyptych.decoders._base import Decoder
from polyptych.decoders._blocks import SingleValueBatchNorm, common_spec
from polyptych.decoders._state_space import FeatureExchange, GatedScans
from polyptych.ops.resize import resize
from polyptych.types import FeatureSpec, Output, TaskFeatures

FINEST = 4  # factor by which the dense head upsamples


class MTMamba(Decoder):
    """Every task begins with the coarsest map. At each finer one, of C channels:

    1. A linear map to more channels, rearranged into positions (pixel shuffle), LayerNorm, concatenation with the
       encoder's map, and a linear map to C.
    2. Self-task blocks, two as published (:class:`polyptych.decoders._state_space.GatedScans`).
    3. A cross-task block: ``semantic``, MTMamba++'s S-CTM (the same class), or ``feature``, MTMamba's F-CTM
       (:class:`polyptych.decoders._state_space.FeatureExchange`).

    ``final[task]`` is the finest map through a head: ``lite``, MTMamba++'s, a 3x3 convolution, BatchNorm, ReLU, a 1x1
    convolution at a quarter of the image's resolution; or ``dense``, MTMamba's, a linear map to four times the
    resolution, LayerNorm, a 1x1 convolution.

    MTMamba is ``mtmamba:cross=feature:head=dense``. Scans are exact and linear in the number of positions, without a
    custom kernel (:mod:`polyptych.ops.selective_scan`); those of all tasks in a block run as one scan. Time and
    parameters grow with the channels of the maps: the pyramid of a ResNet-50 is as wide as that of Swin-L.

    Published on Swin-L, whose maps have strides 4 to 32, each twice as wide as the one before. For other pyramids,
    shuffles use the ratio of the strides and produce the next map's channels; maps that still differ in size are
    resampled. The published code applies weight decay to all parameters; here A, the skip and beta have none.

    Raises:
        InputError: a bad option, or tasks whose pyramids differ in shape.
    """

    refines = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        cross: Literal["semantic", "feature", "none"] = "semantic"
        """How tasks interact: all tasks together control each task's scan (MTMamba++), a gate mixes a scan of all tasks
        with each task's own (MTMamba), or not at all."""
        head: Literal["lite", "dense"] = "lite"
        """MTMamba++'s head at a quarter of the resolution, or MTMamba's at full resolution."""
        self_blocks: int = 2
        """Number of self-task blocks at every scale."""
        states: int = 16
        """States of each scanned channel."""
        ratio: int = 2
        """Scanned channels for every channel of a map."""
        drop_path: float = 0.2
        """Probability that training skips the first block for a sample; it falls to 0 for the last, as published."""
        head_width: int = 96
        """Channels inside the lite head."""

        def __post_init__(self) -> None:
            for field, least in (("self_blocks", 0), ("states", 1), ("ratio", 1), ("head_width", 1)):
                self.require(field, getattr(self, field) >= least, f"{least} or more")
            self.require("drop_path", 0 <= self.drop_path < 1, "a probability in [0, 1)")

        def ablation(self) -> dict[str, Decoder.Config]:
            """Without scans, with self-task blocks, with cross-task blocks; then the other variants."""
            whole = replace(self, self_blocks=self.self_blocks or 2, cross="semantic", head="lite")
            return {"no scans": replace(whole, self_blocks=0, cross="none"),
                    "+ self-task blocks": replace(whole, cross="none"),
                    "+ semantic cross-task blocks": whole,
                    "cross-task blocks of features": replace(whole, cross="feature"),
                    "as MTMamba": replace(whole, cross="feature", head="dense")}

    def __init__(self, config: Config, *, features: dict[str, FeatureSpec], channels: dict[str, int]):
        super().__init__()
        spec, tasks = common_spec(features, "mtmamba"), tuple(channels)
        scales = list(zip(reversed(spec.channels), reversed(spec.strides), strict=True))
        stages = len(scales) - 1
        blocks = config.self_blocks + (config.cross != "none")
        rates = torch.linspace(config.drop_path, 0, max(blocks * stages, 1), device="cpu").tolist()
        self.stages = nn.ModuleList(
            Stage(tasks, coarse, fine, coarse_stride // stride, config, rates[number * blocks:(number + 1) * blocks])
            for number, ((coarse, coarse_stride), (fine, stride)) in enumerate(pairwise(scales)))
        width = spec.channels[0]
        self.heads = nn.ModuleDict({task: LiteHead(width, config.head_width, c) if config.head == "lite" else
                                    DenseHead(width, min(FINEST, spec.strides[0]), c) for task, c in channels.items()})

    def forward(self, features: TaskFeatures) -> Output:
        maps = {task: features[task].maps[-1].permute(0, 2, 3, 1) for task in self.heads}
        for number, stage in enumerate(self.stages):
            maps = stage(maps, {task: features[task].maps[-2 - number] for task in maps})
        return Output({task: head(maps[task]) for task, head in self.heads.items()})


class Stage(nn.Module):
    """One scale: from the coarser maps of all tasks and the encoder's map to the maps of this scale.

    Args:
        coarse, width: channels of the coarser maps and of this scale.
        ratio: ratio of their strides.
        drop_path: stochastic depth of each block.
    """

    def __init__(self, tasks: tuple[str, ...], coarse: int, width: int, ratio: int, config: MTMamba.Config,
                 drop_path: list[float]):
        super().__init__()
        self.expand = nn.ModuleDict({task: Expand(coarse, width, ratio) for task in tasks})
        self.reduce = nn.ModuleDict({task: nn.Linear(2 * width, width) for task in tasks})
        shape = (tasks, width, config.ratio, config.states)
        blocks: list[nn.Module] = [GatedScans(*shape, rate) for rate in drop_path[:config.self_blocks]]
        if config.cross == "semantic":
            blocks.append(GatedScans(*shape, drop_path[-1], crossed=True))
        elif config.cross == "feature":
            blocks.append(FeatureExchange(*shape, drop_path[-1]))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: dict[str, Float[Tensor, "b _ _ _"]], skip: dict[str, Float[Tensor, "b c h w"]]
                ) -> dict[str, Float[Tensor, "b h w c"]]:
        maps = {}
        for task, expand in self.expand.items():
            finer, beside = expand(x[task]).permute(0, 3, 1, 2), skip[task]
            finer = resize(finer, (beside.shape[-2], beside.shape[-1]))
            maps[task] = self.reduce[task](torch.cat([finer, beside], dim=1).permute(0, 2, 3, 1))
        for block in self.blocks:
            maps = block(maps)
        return maps


class Expand(nn.Module):
    """Upsampling: a linear map of every position to ``ratio`` x ``ratio`` positions, then LayerNorm."""

    def __init__(self, width_in: int, width: int, ratio: int):
        super().__init__()
        self.ratio = ratio
        self.linear = nn.Linear(width_in, ratio**2 * width, bias=False)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h2 w2 d"]:
        parts = self.linear(x).unflatten(-1, (self.ratio, self.ratio, -1))  # (b h w row column d)
        return self.norm(parts.transpose(2, 3).flatten(3, 4).flatten(1, 2))


class DenseHead(nn.Module):
    """MTMamba's head."""

    def __init__(self, width: int, ratio: int, channels: int):
        super().__init__()
        self.expand = Expand(width, width, ratio)
        self.predict = nn.Conv2d(width, channels, 1)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b p h2 w2"]:
        return self.predict(self.expand(x).permute(0, 3, 1, 2))


class LiteHead(nn.Sequential):
    """MTMamba++'s head."""

    def __init__(self, width: int, inside: int, channels: int):
        mix = nn.Conv2d(width, inside, 3, padding=1)
        trunc_normal_(mix.weight, std=0.02)  # as published
        super().__init__(mix, SingleValueBatchNorm(inside), nn.ReLU(inplace=True), nn.Conv2d(inside, channels, 1))

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b p h w"]:
        return super().forward(x.permute(0, 3, 1, 2))
