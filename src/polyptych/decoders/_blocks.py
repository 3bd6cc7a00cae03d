"""Prediction heads and small blocks that several decoders share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.tasks._base import resize
from polyptych.types import Features, FeatureSpec


class Head(nn.Module):
    """A pyramid in, one raw prediction out, in two steps: :meth:`gather` has no parameters, so tasks that share a
    pyramid share its result; ``forward`` takes that result.

    Args:
        spec: the pyramid.
        channels: channels of the prediction.
        width: inner channels; 0 takes the published number.
    """

    def __init__(self, spec: FeatureSpec, channels: int, width: int = 0):
        super().__init__()

    @staticmethod
    def gather(features: Features) -> Tensor | tuple[Tensor, ...]:
        """What the head needs of the pyramid."""
        return features.maps


def upsample_and_concatenate(maps: Sequence[Float[Tensor, "b _ _ _"]]) -> Float[Tensor, "b s h w"]:
    """All maps at the resolution of the first, stacked along the channels."""
    size = tuple(maps[0].shape[-2:])
    return torch.cat([resize(x, size) for x in maps], dim=1)


def convolution(channels_in: int, channels_out: int, kernel: int, dilation: int = 1) -> nn.Sequential:
    """Convolution without bias, BatchNorm, ReLU; keeps the resolution."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, padding=dilation * (kernel // 2), dilation=dilation, bias=False),
        nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))


class FusedHead(Head):
    """HRNet's head: all scales at the finest one, concatenated, two 1x1 convolutions.

    Wang et al., TPAMI 2020, arXiv 1908.07919 (HRNetV2). The published width is the sum of the pyramid's channels.
    """

    def __init__(self, spec: FeatureSpec, channels: int, width: int = 0):
        super().__init__(spec, channels, width)
        total = sum(spec.channels)
        width = width or total
        self.fuse = nn.Sequential(nn.Conv2d(total, width, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.predict = nn.Conv2d(width, channels, 1)

    @staticmethod
    def gather(features: Features) -> Float[Tensor, "b s h w"]:
        return upsample_and_concatenate(features.maps)

    def forward(self, gathered: Float[Tensor, "b s h w"]) -> Float[Tensor, "b c h w"]:
        return self.predict(self.fuse(gathered))


class SingleValueBatchNorm(nn.BatchNorm2d):
    """BatchNorm that also accepts one value per channel in training, where a variance does not exist: it then
    normalizes by the running statistics and leaves them alone."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        if self.training and x.shape[0] * x.shape[2] * x.shape[3] == 1:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: a 1x1 convolution, three dilated ones and the mean of the image, concatenated.

    Chen et al. 2017, arXiv 1706.05587 (DeepLabv3). The dilations are 12, 24, 36 at stride 8, as published, and keep
    the same extent in the image at other strides (6, 12, 18 at stride 16). The published code cannot train with one
    image per device, because the image branch normalizes a single value; ours then uses the running statistics.
    """

    def __init__(self, channels: int, stride: int, width: int = 256):
        super().__init__()
        rates = [max(1, round(96 * k / stride)) for k in (1, 2, 3)]
        self.local = nn.ModuleList([convolution(channels, width, 1),
                                    *(convolution(channels, width, 3, dilation=rate) for rate in rates)])
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, width, 1, bias=False),
                                   SingleValueBatchNorm(width), nn.ReLU(inplace=True))
        self.project = nn.Sequential(convolution(5 * width, width, 1), nn.Dropout(0.5))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        local = [branch(x) for branch in self.local]
        image = self.image(x).expand_as(local[0])  # bilinear upsampling of a single value
        return self.project(torch.cat([*local, image], dim=1))


class DeepLabHead(Head):
    """ASPP on the coarsest map, a 3x3 convolution, the prediction. Chen et al. 2017, arXiv 1706.05587; the
    published width is 256."""

    def __init__(self, spec: FeatureSpec, channels: int, width: int = 0):
        super().__init__(spec, channels, width)
        width = width or 256
        self.aspp = ASPP(spec.channels[-1], spec.strides[-1], width)
        self.refine = convolution(width, width, 3)
        self.predict = nn.Conv2d(width, channels, 1)

    @staticmethod
    def gather(features: Features) -> Float[Tensor, "b s h w"]:
        return features.maps[-1]

    def forward(self, gathered: Float[Tensor, "b s h w"]) -> Float[Tensor, "b c h w"]:
        return self.predict(self.refine(self.aspp(gathered)))


class FPNHead(Head):
    """A light feature pyramid network: lateral 1x1 convolutions, a top-down sum, 3x3 smoothing, and the sum of all
    scales at the finest one.

    Lin et al., CVPR 2017, arXiv 1612.03144, with the sum over scales of Kirillov et al., CVPR 2019, arXiv 1901.02446;
    one smoothing convolution per scale instead of a chain of them, BatchNorm instead of GroupNorm. Default width 128.
    """

    def __init__(self, spec: FeatureSpec, channels: int, width: int = 0):
        super().__init__(spec, channels, width)
        width = width or 128
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1) for c in spec.channels)
        self.smooth = nn.ModuleList(convolution(width, width, 3) for _ in spec.channels)
        self.predict = nn.Conv2d(width, channels, 1)

    def forward(self, gathered: tuple[Tensor, ...]) -> Float[Tensor, "b c h w"]:
        finest = tuple(gathered[0].shape[-2:])
        above, total = None, None
        for x, lateral, smooth in reversed(list(zip(gathered, self.lateral, self.smooth, strict=True))):
            x = lateral(x)
            above = x if above is None else x + resize(above, tuple(x.shape[-2:]))
            smoothed = resize(smooth(above), finest)
            total = smoothed if total is None else total + smoothed
        return self.predict(total)
