"""DeMT's deformable mixer: 1x1 convolutions mix channels, deformable sampling mixes positions.

Source: Xu, Yang, Zhang, AAAI 2023, arXiv 2301.03461
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.decoders._blocks import SingleValueBatchNorm
from polyptych.ops.deform import deformable_convolution


class LocalOffsets(nn.Module):
    """Offsets (dy, dx) relative to the pixel for every group of channels: a 3x3 convolution initialized to zero, so
    that at first every pixel reads itself."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.predict = nn.Conv2d(channels, 2 * groups, 3, padding=1)
        nn.init.zeros_(self.predict.weight)
        nn.init.zeros_(self.predict.bias)  # type: ignore[arg-type]

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h w"]:
        return self.predict(x)


class PublishedOffsets(nn.Module):
    """The offsets of the published code: a 3x3 convolution predicts a vector for each of nine taps, to which the
    absolute position of the tap is added, in pixels of the whole map, counted from one; then a grouped 3x3 convolution
    maps nine rows and nine columns to two numbers per channel.

    The first half of its output depends on rows only and the second on columns only, but the operator reads (dy, dx)
    pairs: the first half of the channels is shifted by two row values, the second by two column values. Because
    absolute positions enter with random initial weights, samples initially come from far away.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.p_conv = nn.Conv2d(channels, 18, 3, padding=1)
        nn.init.zeros_(self.p_conv.weight)
        self.opt = nn.Conv2d(18, 2 * channels, 3, padding=1, groups=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h w"]:
        places = self.p_conv(x)
        with torch.autocast(x.device.type, enabled=False):  # half precision would round coordinates in the hundreds
            places = places.to(self.opt.weight.dtype)
            return self.opt(places + self._positions(places))

    @staticmethod
    def _positions(x: Tensor) -> Float[Tensor, "1 18 h w"]:
        h, w = x.shape[-2:]
        taps = torch.arange(-1, 2, device=x.device, dtype=x.dtype)
        rows = taps.repeat_interleave(3).view(9, 1, 1) + torch.arange(1, h + 1, device=x.device, dtype=x.dtype)[:, None]
        columns = taps.repeat(3).view(9, 1, 1) + torch.arange(1, w + 1, device=x.device, dtype=x.dtype)
        return torch.cat([rows.expand(9, h, w), columns.expand(9, h, w)])[None]


class DeformableMixer(nn.Module):
    """With a 1x1 convolution W, a deformable 1x1 convolution D, and offsets p predicted from y,

        y = BN(GELU(W x)),    y + BN(GELU(D(y; p)))

    Args:
        channels: channels of x and of the result.
        groups: number of channel groups; the channels of a group share offsets (``local``).
        published: the offsets of the published code, a pair for every channel.
    """

    def __init__(self, channels: int, groups: int, published: bool):
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1)
        self.norm = SingleValueBatchNorm(channels)
        self.offsets = PublishedOffsets(channels) if published else LocalOffsets(channels, groups)
        self.deform = nn.Conv2d(channels, channels, 1)  # holds the weights; its input is sampled at the offsets
        self.deformed_norm = SingleValueBatchNorm(channels)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        y = self.norm(F.gelu(self.mix(x)))
        moved = deformable_convolution(y, self.offsets(y), self.deform.weight, self.deform.bias)
        return y + self.deformed_norm(F.gelu(moved))
