"""PGT's light decoder: one small transformer for all tasks, with prompts of each.

Source: Lu, Sirejiding, Bayram, Huang, Lu, IEEE Transactions on Multimedia 2024, arXiv 2307.15362
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import nn

from polyptych.backbones._prompted_attention import Now, PromptedAttention, Prompts
from polyptych.backbones._windows import shift_as_published
from polyptych.decoders._base import Decoder
from polyptych.decoders._blocks import common_spec
from polyptych.decoders._light import Gathering, HeadKind, light_head
from polyptych.errors import InputError
from polyptych.types import FeatureSpec, Output, TaskFeatures


class PGTDecoder(Decoder):
    """All maps of a task are resized to the finest and mixed to its width; then two layers of Swin blocks, with prompts
    of the task in every window, and a head per task. The decoder runs once per task with shared weights, so its batch
    statistics cover all tasks.

    The layers have 6 and 3 attention heads, as published, or the next lower numbers that divide the width. (6 and 3 do
    not divide the 128 channels of Swin-B: the released network of that size cannot run.)

    Raises:
        InputError: tasks with different pyramids, or heads that do not divide the width.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        size: tuple[int, int] = (448, 576)
        """Height and width of the images that determine the windows (images of any size can be used): if the finest map
        is not larger than a window, the window becomes its shorter side."""
        width: int = 0
        """Channels (0: those of the finest map)."""
        depths: tuple[int, ...] = (2, 2)
        """Blocks of each layer."""
        attention_heads: tuple[int, ...] = ()
        """Number of attention heads in each layer (default: 6 and 3, or fewer if these do not divide the width)."""
        window: int = 7
        """Height and width of a window."""
        prompts: int = 10
        """Number of prompt tokens per task in each block."""
        drop_path: float = 0.1
        """Stochastic depth of the first block; it falls to 0 at the last."""
        head: HeadKind = "transpose"
        """Head of a task: two transposed convolutions and a 1x1 one, or the last alone."""

    def __init__(self, config: Config, *, features: dict[str, FeatureSpec], channels: dict[str, int]):
        super().__init__()
        spec = common_spec(features, "pgt")
        width, tasks = config.width or spec.channels[0], tuple(channels)
        for name, least in (("width", 0), ("window", 1), ("prompts", 1)):
            config.require(name, getattr(config, name) >= least, f"{least} or more", "raise it")
        config.require("drop_path", 0 <= config.drop_path < 1, "a probability in [0, 1)", "choose such a value")
        heads = config.attention_heads or tuple(next(n for n in range(most, 0, -1) if width % n == 0)
                                                for most in (6, 3, *[3] * len(config.depths))[:len(config.depths)])
        if not config.depths or len(config.depths) != len(heads) or any(h < 1 or width % h for h in heads):
            raise InputError("decoder.attention_heads", " ".join(map(str, heads)), f"a number for each of the "
                             f"{len(config.depths)} layers that divides the width of {width}", "choose such numbers")
        self.gathering = Gathering(spec, width)
        size = (-(-config.size[0] // spec.strides[0]), -(-config.size[1] // spec.strides[0]))
        rates = iter(torch.linspace(config.drop_path, 0, sum(config.depths), device="cpu").tolist())
        self.now = Now()
        self.prompts, self.layers = nn.ModuleList(), nn.ModuleList()
        for depth, number in zip(config.depths, heads, strict=True):
            blocks = nn.Sequential(*(SwinTransformerBlock(
                width, size, number, window_size=config.window, shift_size=i % 2 * (config.window // 2),
                drop_path=next(rates)) for i in range(depth)))
            shift_as_published(blocks)
            prompts = Prompts(tasks, depth, config.prompts, width, (6 / (3 * 16 + width)) ** 0.5)
            for index, block in enumerate(blocks):
                each: Any = block
                each.attn = PromptedAttention(each.attn, self.now, prompts, index)
            self.prompts.append(prompts)
            self.layers.append(blocks)
        self.heads = nn.ModuleDict({task: light_head(config.head, width, channels[task]) for task in tasks})

    def forward(self, features: TaskFeatures) -> Output:
        final = {}
        for task, head in self.heads.items():
            self.now.task = task
            x = self.gathering(features[task]).permute(0, 2, 3, 1)
            for layer in self.layers:
                x = layer(x)
            final[task] = head(x.permute(0, 3, 1, 2))
        return Output(final)
