"""WRN, the wide residual network for small images.

Source: Zagoruyko, Komodakis, BMVC 2016, arXiv 1605.07146; as MTAN uses it on the Visual Decathlon: Liu, Johns, Davison,
CVPR 2019, arXiv 1803.10704
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from polyptych.backbones._attention import Attention, Point
from polyptych.backbones._base import Backbone
from polyptych.errors import InputError
from polyptych.types import Features, FeatureSpec

STRIDES = (1, 2, 4, 8)


class WideResNet(Backbone):
    """A convolution at full resolution and three groups of pre-activation blocks, each of which halves the resolution
    in its first block. For WRN-28-4 that is 16, 64, 128 and 256 channels at strides 1, 2, 4 and 8 (an image of 72x72
    ends as 9x9) and 5,850,528 parameters.

    The form is MTAN's, not the original's: convolutions have biases, the first group too has stride 2, and a strided
    block has its stride in the second convolution. MTAN's last BatchNorm has momentum 0.9, kept here. The shortcut is a
    1x1 convolution of the block's raw input where the shape changes.

    Raises:
        InputError: a depth that is not 6 n + 4, or a width below 1.
    """

    multiple = STRIDES[-1]

    @dataclass(frozen=True, kw_only=True)
    class Config(Backbone.Config):
        depth: int = 28
        """Number of convolutions, 6 n + 4, for n blocks in each of the three groups."""
        width: int = 4
        """Multiplies the 16, 32 and 64 channels of the three groups."""

    def __init__(self, config: Config):
        super().__init__()
        blocks, left = divmod(config.depth - 4, 6)
        if left or blocks < 1:
            raise InputError("backbone.depth", str(config.depth), "10, 16, 22, 28 or another 6 n + 4",
                             "change --backbone.depth")
        if config.width < 1:
            raise InputError("backbone.width", str(config.width), "1 or more", "raise it")
        channels = (16, *(config.width * c for c in (16, 32, 64)))
        self.spec = FeatureSpec(channels, STRIDES)
        self.attention = Attention(tuple(Point((c,), (c,), (s,)) for c, s in zip(channels, STRIDES, strict=True)),
                                   form="plain", finish=True)
        groups = [_group(a, b, blocks) for a, b in pairwise(channels)]
        groups[-1].extend([nn.BatchNorm2d(channels[-1], momentum=0.9), nn.ReLU(inplace=True)])
        self.stages = nn.ModuleList([nn.Conv2d(3, channels[0], 3, padding=1), *groups])

    def features(self, states: list[Any]) -> Features:
        return Features(tuple(states))

    def attention_maps(self, image: Float[Tensor, "b 3 h w"]) -> list[tuple[list[Tensor], list[Tensor]]]:
        """The output of every stage, twice: masks are computed from the same maps that they multiply."""
        pairs, x = [], image
        for stage in self.stages:
            x = stage(x)
            pairs.append(([x], [x]))
        return pairs

    def attended_features(self, attended: list[list[Tensor]]) -> Features:
        """A task's pyramid from its masked maps, one list for every stage."""
        return Features(tuple(maps[0] for maps in attended))


def _group(channels_in: int, channels: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(PreActivationBlock(channels_in, channels, 2),
                         *(PreActivationBlock(channels, channels, 1) for _ in range(blocks - 1)))


class PreActivationBlock(nn.Module):
    """Twice BatchNorm, ReLU and a 3x3 convolution, the second one strided, added to the input.

    He, Zhang, Ren, Sun, ECCV 2016, arXiv 1603.05027
    """

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.change = nn.Sequential(
            nn.BatchNorm2d(channels_in), nn.ReLU(inplace=True), nn.Conv2d(channels_in, channels, 3, padding=1),
            nn.BatchNorm2d(channels), nn.ReLU(inplace=True), nn.Conv2d(channels, channels, 3, stride, padding=1))
        same = stride == 1 and channels_in == channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels, 1, stride)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        return self.shortcut(x) + self.change(x)
