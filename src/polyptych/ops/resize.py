"""Bilinear resampling of maps, with a gradient in the memory layout of the map."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def resize(x: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c h2 w2"]:
    """Resize bilinearly (align_corners=False); does nothing if the size is right already."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    if x.requires_grad and torch.is_grad_enabled() and _channels_are_last(x):
        x = KeepLayout.apply(x)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class KeepLayout(torch.autograd.Function):
    """The identity, with a gradient in channels-last memory.

    Losses on maps of few channels return gradients in the standard layout. oneDNN's backward pass of the 1 x 1
    convolution that made such a map is up to ten times slower if the layouts of its two inputs differ.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.contiguous(memory_format=torch.channels_last)


def _channels_are_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
