"""MTAN's two building blocks: per-task attention masks, and the refinement between points, which all tasks share.

Source: Liu, Johns, Davison, CVPR 2019, arXiv 1803.10704; the residual form as in the survey of Vandenhende et al.,
TPAMI 2021, arXiv 2004.13379
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.backbones._attention import Attention, Point
from polyptych.decoders._blocks import SingleValueBatchNorm

Form = Literal["residual", "plain"]


class Mask(nn.Module):
    """Values in (0, 1) for every channel and position: 1x1 convolution, BatchNorm, ReLU, 1x1 convolution, BatchNorm,
    sigmoid. The inner width equals the output width; in the residual form, a quarter of it."""

    def __init__(self, channels_in: int, channels: int, form: Form):
        super().__init__()
        width = max(channels // 4, 1) if form == "residual" else channels
        self.layers = nn.Sequential(
            nn.Conv2d(channels_in, width, 1), SingleValueBatchNorm(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, channels, 1), SingleValueBatchNorm(channels), nn.Sigmoid())

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        return self.layers(x)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with BatchNorm, with a quarter of the output width inside, added to the input (or to
    a 1x1 convolution of it with BatchNorm, if the number of channels changes). Unlike torchvision's, it accepts any
    number of channels."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        width = max(channels // 4, 1)
        self.change = nn.Sequential(
            nn.Conv2d(channels_in, width, 1, bias=False), SingleValueBatchNorm(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1, bias=False), SingleValueBatchNorm(width), nn.ReLU(inplace=True),
            nn.Conv2d(width, channels, 1, bias=False), SingleValueBatchNorm(channels))
        self.shortcut = nn.Identity() if channels_in == channels else nn.Sequential(
            nn.Conv2d(channels_in, channels, 1, bias=False), SingleValueBatchNorm(channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        return F.relu(self.shortcut(x) + self.change(x))


def refinement(channels_in: int, channels: int, form: Form) -> nn.Module:
    """A bottleneck, or, in the plain form, a 3x3 convolution with bias, BatchNorm and ReLU; keeps the resolution."""
    if form == "residual":
        return Bottleneck(channels_in, channels)
    return nn.Sequential(nn.Conv2d(channels_in, channels, 3, padding=1), SingleValueBatchNorm(channels),
                         nn.ReLU(inplace=True))


class Way(nn.Module):
    """Brings an attended map to the size and channels of the next point; shared by all tasks.

    On the way down, refinement precedes max pooling; on the way up, it follows upsampling (align_corners=True, as
    published). Between the last point down and the first one up (SegNet's bottom), both happen, in that order.
    """

    def __init__(self, channels_in: int, stride: int, channels: int, next_stride: int, bottom: int, form: Form):
        super().__init__()
        low = max(bottom, stride, next_stride)
        up = low > next_stride
        self.pool = low // stride
        self.before = refinement(channels_in, channels_in if up else channels, form) if low > stride or not up else None
        self.after = refinement(channels_in, channels, form) if up else None

    def forward(self, x: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b d h2 w2"]:
        if self.before is not None:
            x = self.before(x)
        if self.pool > 1:
            x = F.max_pool2d(x, self.pool, ceil_mode=True)
        if tuple(x.shape[-2:]) != size:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
        return x if self.after is None else self.after(x)


class Step(nn.Module):
    """The paths from one point to the next. Where branches run in parallel, each branch at the next point continues the
    one with the same index, and a new branch continues the last one."""

    def __init__(self, point: Point, following: Point, form: Form):
        super().__init__()
        self.sources = [min(i, len(point.exit) - 1) for i in range(len(following.exit))]
        self.ways = nn.ModuleList(
            Way(point.exit[i], point.strides[i], channels, stride, point.bottom, form)
            for i, channels, stride in zip(self.sources, following.exit, following.strides, strict=True))

    def forward(self, maps: list[Tensor], targets: list[Tensor]) -> list[Tensor]:
        """``targets``: maps of the sizes of the result."""
        return [way(maps[i], (target.shape[-2], target.shape[-1]))
                for i, way, target in zip(self.sources, self.ways, targets, strict=True)]


class Masks(nn.Module):
    """One task's masks at one point, one per branch."""

    def __init__(self, point: Point, first: bool, form: Form):
        super().__init__()
        self.masks = nn.ModuleList(Mask(entry if first else entry + channels, channels, form)
                                   for entry, channels in zip(point.entry, point.exit, strict=True))

    def forward(self, inputs: list[Tensor], maps: list[Tensor]) -> list[Tensor]:
        return [mask(x) * y for mask, x, y in zip(self.masks, inputs, maps, strict=True)]


def steps_between(attention: Attention) -> nn.ModuleList:
    """One :class:`Step` from each point to the next, and one more at the end if the backbone needs it."""
    points = attention.points
    following = [*points[1:], *([points[-1]] if attention.finish else [])]
    return nn.ModuleList(Step(a, b, attention.form) for a, b in zip(points, following, strict=False))
