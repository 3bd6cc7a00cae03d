"""Shared parts of the light decoders of PGT and TIT: one decoder for all tasks, and a small head for each."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.decoders._blocks import SingleValueBatchNorm
from polyptych.ops.resize import resize
from polyptych.types import Features, FeatureSpec

HeadKind = Literal["transpose", "plain"]


class Gathering(nn.Module):
    """All maps projected to one width, resized to the finest, concatenated, and mixed by a 1x1 convolution."""

    def __init__(self, spec: FeatureSpec, width: int):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(channels, width) for channels in spec.channels)
        self.linear_fuse = nn.Sequential(nn.Conv2d(width * len(spec.channels), width, 1), SingleValueBatchNorm(width),
                                         nn.LeakyReLU(0.01))

    def forward(self, features: Features) -> Float[Tensor, "b d h w"]:
        size = (features.maps[0].shape[2], features.maps[0].shape[3])
        maps = [resize(linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), size)
                for linear, x in zip(self.linears, features.maps, strict=True)]
        return self.linear_fuse(torch.cat(maps, dim=1))


def light_head(kind: HeadKind, width: int, channels: int) -> nn.Sequential:
    """Two transposed convolutions that double the size and halve the width, then a 1x1 prediction; or the prediction
    alone."""
    if kind == "plain":
        return nn.Sequential(nn.Conv2d(width, channels, 1))
    half, quarter = max(1, width // 2), max(1, width // 4)
    return nn.Sequential(nn.ConvTranspose2d(width, half, 2, 2), nn.ConvTranspose2d(half, quarter, 2, 2),
                         nn.Conv2d(quarter, channels, 1))
