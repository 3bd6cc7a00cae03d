"""Heads on the tokens of a frozen transformer: the linear probe, DPT, and depth as a mean over bins."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.decoders._blocks import Head, SingleValueBatchNorm
from polyptych.types import Features, FeatureSpec

REASSEMBLED = (4, 8, 16, 32)  # strides that four maps of one stride are brought to


class ProbeHead(Head):
    """BatchNorm and a 1x1 convolution of the last map, with small initial weights: the linear probe with which DINOv2
    and DINOv3 evaluate a frozen backbone (Oquab et al., TMLR 2024, arXiv 2304.07193; Simeoni et al. 2025, arXiv
    2508.10104). DINOv3's channel dropout for segmentation is not included."""

    def __init__(self, spec: FeatureSpec, channels: int, width: int = 0):
        super().__init__(spec, channels, width)
        self.norm = SingleValueBatchNorm(spec.channels[-1])
        self.predict = nn.Conv2d(spec.channels[-1], channels, 1)
        nn.init.normal_(self.predict.weight, std=0.01)
        nn.init.zeros_(self.predict.bias)  # type: ignore[arg-type]

    @staticmethod
    def gather(features: Features) -> Float[Tensor, "b s h w"]:
        return features.maps[-1]

    def forward(self, gathered: Float[Tensor, "b s h w"]) -> Float[Tensor, "b c h w"]:
        return self.predict(self.norm(gathered))


class DPTHead(Head):
    """DPT: four maps reassembled at strides 4, 8, 16 and 32, fused from coarse to fine by residual units.

    Ranftl, Bochkovskiy, Koltun, ICCV 2021, arXiv 2103.13413, in the form of DINOv3's evaluation code, which reads no
    class token. There, the widths after reassembling are 128, 256, 512 and 1024; here they are half, one, two and four
    times ``width`` (published: 256). A pyramid with maps of different strides is only projected to those widths.
    """

    def __init__(self, spec: FeatureSpec, channels: int, width: int = 0):
        super().__init__(spec, channels, width)
        width = width or 256
        plain = len(set(spec.strides)) == 1 and len(spec.strides) == len(REASSEMBLED)
        factors = [spec.strides[0] / stride if plain else 1.0 for stride in REASSEMBLED[:len(spec.strides)]]
        inside = [max(1, width // 2) * 2**i for i in range(len(spec.channels))]
        self.project = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(spec.channels, inside, strict=True))
        self.resample = nn.ModuleList(_resampling(c, factor) for c, factor in zip(inside, factors, strict=True))
        self.narrow = nn.ModuleList(nn.Conv2d(c, width, 3, padding=1, bias=False) for c in inside)
        self.fuse = nn.ModuleList(Fusing(width, first=i == len(inside) - 1) for i in range(len(inside)))
        self.mix = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(inplace=True))
        half, last = max(1, width // 2), max(1, width // 8)
        self.thin = nn.Conv2d(width, half, 3, padding=1)
        self.predict = nn.Sequential(nn.Conv2d(half, last, 3, padding=1), nn.ReLU(inplace=True),
                                     nn.Conv2d(last, channels, 1))

    def forward(self, gathered: tuple[Tensor, ...]) -> Float[Tensor, "b c h w"]:
        maps = [narrow(resample(project(x))) for x, project, resample, narrow
                in zip(gathered, self.project, self.resample, self.narrow, strict=True)]
        fused: Tensor | None = None
        for x, fuse in reversed(list(zip(maps, self.fuse, strict=True))):
            fused = fuse(x, fused)
        assert fused is not None
        return self.predict(_doubled(self.thin(self.mix(fused))))


def _resampling(channels: int, factor: float) -> nn.Module:
    """Resampling by an integer factor or its inverse; strides that are not powers of two are left to the fusion."""
    if factor > 1 and factor == int(factor):
        return nn.ConvTranspose2d(channels, channels, int(factor), int(factor))
    if factor < 1 and 1 / factor == int(1 / factor):
        return nn.Conv2d(channels, channels, 3, stride=int(1 / factor), padding=1)
    return nn.Identity()


class Fusing(nn.Module):
    """Adds a residual unit of this map to the coarser result (resized to the map); then a second unit, upsampling by
    two, and a 1x1 convolution. The coarsest map goes through the second unit alone."""

    def __init__(self, width: int, first: bool):
        super().__init__()
        self.skip = nn.Identity() if first else ResidualUnit(width)
        self.unit, self.mix = ResidualUnit(width), nn.Conv2d(width, width, 1)

    def forward(self, x: Float[Tensor, "b c h w"], coarser: Tensor | None) -> Float[Tensor, "b c h2 w2"]:
        if coarser is not None:
            if coarser.shape[2:] != x.shape[2:]:  # if the size is odd
                coarser = F.interpolate(coarser, size=x.shape[2:], mode="bilinear", align_corners=True)
            x = coarser + self.skip(x)
        return self.mix(_doubled(self.unit(x)))


class ResidualUnit(nn.Module):
    """Twice ReLU and a 3x3 convolution, added to the input."""

    def __init__(self, width: int):
        super().__init__()
        self.change = nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
                                    nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return x + self.change(x)


def _doubled(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
    size = (2 * x.shape[2], 2 * x.shape[3])
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class Binned(nn.Module):
    """One number per pixel, as the mean of evenly spaced values with weights (relu(x) + 0.1) / sum, where x is the
    head's output for each value. This is how AdaBins' successors, DINOv2 and DINOv3 predict depth.

    Args:
        bins: number of values, from ``least`` to ``most``.
        form: the prediction is the value, or its logarithm (for losses of logarithms).
    """

    values: Tensor

    def __init__(self, head: nn.Module, bins: int, least: float, most: float, form: Literal["value", "logarithm"]):
        super().__init__()
        self.head, self.form = head, form
        self.register_buffer("values", torch.linspace(least, most, bins).view(-1, 1, 1), persistent=False)

    def forward(self, gathered: Tensor | tuple[Tensor, ...]) -> Float[Tensor, "b 1 h w"]:
        weights = F.relu(self.head(gathered)) + 0.1
        value = (weights * self.values).sum(1, keepdim=True) / weights.sum(1, keepdim=True)
        return value.log() if self.form == "logarithm" else value
