"""Necks: a pyramid to one map at its finest resolution.

Source: concatenation as in HRNetV2 (Wang et al., TPAMI 2020, arXiv 1908.07919); FPN, Lin et al., CVPR 2017, arXiv
1612.03144; BiFPN, Tan, Pang, Le, CVPR 2020, arXiv 1911.09070
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.decoders._blocks import SingleValueBatchNorm, upsample_and_concatenate
from polyptych.ops.resize import resize
from polyptych.types import FeatureSpec

EPSILON = 1e-4  # of BiFPN's normalization, as published


class Concatenate(nn.Module):
    """All maps at the resolution of the finest, stacked. No parameters."""

    def __init__(self, spec: FeatureSpec, width: int):
        super().__init__()
        self.channels = sum(spec.channels)

    def forward(self, maps: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b s h w"]:
        return upsample_and_concatenate(maps)


class FeaturePyramid(nn.Module):
    """FPN's finest map: a 1x1 convolution projects every map to one width, each coarser map is added to the next finer
    one on the way down, and a 3x3 convolution follows at the end."""

    def __init__(self, spec: FeatureSpec, width: int):
        super().__init__()
        self.channels = width
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in spec.channels)
        self.smooth = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, maps: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b c h w"]:
        levels = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        x = levels[-1]
        for finer in reversed(levels[:-1]):
            x = finer + resize(x, (finer.shape[-2], finer.shape[-1]))
        return self.smooth(x)


class BidirectionalPyramid(nn.Module):
    """FPN's top-down path, then a bottom-up path, and once more down to the finest level. Every sum has learned
    positive weights that add up to one (fast normalized fusion), and is followed by a depthwise separable convolution.

    A full BiFPN layer returns all levels; only the finest is used here, so a second top-down path brings to it what the
    bottom-up path gathered.
    """

    def __init__(self, spec: FeatureSpec, width: int):
        super().__init__()
        self.channels, levels = width, len(spec.channels)
        self.lateral = nn.ModuleList(nn.Sequential(nn.Conv2d(c, width, 1, bias=False), SingleValueBatchNorm(width))
                                     for c in spec.channels)
        self.down = nn.ModuleList(Fuse(2, width) for _ in range(levels - 1))
        self.up = nn.ModuleList(Fuse(3, width) for _ in range(levels - 1))
        self.finish = nn.ModuleList(Fuse(2, width) for _ in range(levels - 1))
        self.halvings = [(coarse // fine).bit_length() - 1 for fine, coarse in pairwise(spec.strides)]

    def forward(self, maps: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b c h w"]:
        levels = [lateral(x) for lateral, x in zip(self.lateral, maps, strict=True)]
        middle = self._descend(levels, self.down)
        risen = middle[:1]
        for level, fuse in enumerate(self.up, start=1):
            pooled = risen[-1]
            for _ in range(self.halvings[level - 1]):
                pooled = F.max_pool2d(pooled, 3, stride=2, padding=1)
            size = (levels[level].shape[-2], levels[level].shape[-1])
            risen.append(fuse([levels[level], middle[level], resize(pooled, size)]))
        return self._descend(risen, self.finish)[0]

    @staticmethod
    def _descend(levels: list[Tensor], fuses: nn.ModuleList) -> list[Tensor]:
        """From the coarsest to the finest; the result in the order of the levels."""
        result = [levels[-1]]
        for finer, fuse in zip(reversed(levels[:-1]), fuses, strict=True):
            result.insert(0, fuse([finer, resize(result[0], (finer.shape[-2], finer.shape[-1]))]))
        return result


class Fuse(nn.Module):
    """Fast normalized fusion of maps of one size, Swish, depthwise 3x3 and pointwise convolution, BatchNorm."""

    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.shares = nn.Parameter(torch.ones(inputs))
        self.convolve = nn.Sequential(nn.SiLU(), nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
                                      nn.Conv2d(width, width, 1, bias=False), SingleValueBatchNorm(width))

    def forward(self, maps: list[Float[Tensor, "b c h w"]]) -> Float[Tensor, "b c h w"]:
        shares = self.shares.relu()
        shares = shares / (shares.sum() + EPSILON)
        return self.convolve(sum(share * x for share, x in zip(shares, maps, strict=True)))


NECKS: dict[str, type[Concatenate | FeaturePyramid | BidirectionalPyramid]] = {
    "concat": Concatenate, "fpn": FeaturePyramid, "bifpn": BidirectionalPyramid}
