"""HRNet's exchange between branches, for maps of any size.

Source: Wang et al., TPAMI 2020, arXiv 1908.07919
"""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from jaxtyping import Float
from timm.models.hrnet import HighResolutionModule
from torch import Tensor, nn

from polyptych.ops.resize import resize


class Exchange(HighResolutionModule):
    """timm's module, but a coarse branch is resized to the finer one that it is added to, instead of by an integer
    factor: for an image of 425 rows, the branches have 107, 54, 27 and 14 rows."""

    mode: Literal["bilinear", "nearest"]

    def forward(self, x: list[Float[Tensor, "b _ _ _"]]) -> list[Float[Tensor, "b _ _ _"]]:
        maps = [branch(each) for branch, each in zip(self.branches, x, strict=True)]
        if self.num_branches == 1:
            return maps
        return [self.fuse_act(self._joined(layers, maps, own)) for layers, own in zip(self.fuse_layers, maps,
                                                                                      strict=False)]

    def _joined(self, layers: nn.ModuleList, maps: list[Tensor], own: Tensor) -> Tensor:
        sent = [self._sent(layer, each, own) for layer, each in zip(layers, maps, strict=True)]
        total = sent[0]
        for each in sent[1:]:
            total = total + each
        return total

    def _sent(self, layer: nn.Module, x: Tensor, to: Tensor) -> Tensor:
        if not isinstance(layer, nn.Sequential):
            return layer(x)
        size = (to.shape[-2], to.shape[-1])
        for step in layer:
            if not isinstance(step, nn.Upsample):
                x = step(x)
            elif self.mode == "bilinear":
                x = resize(x, size)
            else:
                x = F.interpolate(x, size=size, mode="nearest")
        return x


def exchange(network: nn.Module, mode: Literal["bilinear", "nearest"]) -> None:
    """Turn the modules of a timm HRNet into :class:`Exchange`."""
    for module in network.modules():
        if type(module) is HighResolutionModule:
            exchanging: Any = module
            exchanging.__class__, exchanging.mode = Exchange, mode
