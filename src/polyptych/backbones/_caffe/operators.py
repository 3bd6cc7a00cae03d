"""The layers of Caffe that torch has no module for. Inputs and outputs are maps (b c h w) or vectors (b c).

Types are not checked at run time: torch.fx calls these modules with stand-ins for tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, no_type_check

import torch
from jaxtyping import Float
from torch import Tensor, nn

Map = Float[Tensor, "b *_"]


class Elementwise(nn.Module):
    """Sum, product or maximum of inputs of one shape; a sum may be weighted."""

    def __init__(self, operation: Literal["PROD", "SUM", "MAX"], coeff: Sequence[float] = ()):
        super().__init__()
        self.operation, self.coeff = operation, tuple(coeff)

    @no_type_check
    def forward(self, *inputs: Map) -> Map:
        first, *others = inputs
        if self.operation == "SUM":
            weights = self.coeff or (1.0,) * len(inputs)
            total = first if weights[0] == 1 else first * weights[0]
            for x, weight in zip(others, weights[1:], strict=True):
                total = total + (x if weight == 1 else x * weight)
            return total
        for x in others:
            first = first * x if self.operation == "PROD" else torch.maximum(first, x)
        return first


class Concatenate(nn.Module):
    """Concatenates inputs along one axis."""

    def __init__(self, axis: int):
        super().__init__()
        self.axis = axis

    @no_type_check
    def forward(self, *inputs: Map) -> Map:
        return torch.cat(inputs, self.axis)


class ChannelScale(nn.Module):
    """A learned factor, and optionally an offset, for every channel of an input with ``axes`` axes."""

    def __init__(self, channels: int, bias: bool, axes: int = 4):
        super().__init__()
        self.shape = (-1, *[1] * (axes - 2))
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    @no_type_check
    def forward(self, x: Map) -> Map:
        scaled = x * self.weight.view(self.shape)
        return scaled if self.bias is None else scaled + self.bias.view(self.shape)


class Rescale(nn.Module):
    """The first input times the second, whose axes are ``after`` fewer at the end, and otherwise broadcast."""

    def __init__(self, after: int):
        super().__init__()
        self.after = after

    @no_type_check
    def forward(self, x: Map, factor: Tensor) -> Map:
        for _ in range(self.after):
            factor = factor.unsqueeze(-1)
        return x * factor


class InnerProductLayer(nn.Linear):
    """A linear map of the flattened input."""

    @no_type_check
    def forward(self, x: Map) -> Float[Tensor, "b out"]:
        return super().forward(x.flatten(1))
