"""Swin's shifted windows, as in networks for dense prediction.

Liu et al., ICCV 2021, arXiv 2103.14030. Every second block shifts its windows, in every stage, and a map whose size is
not a multiple of the window is padded with zeros before it is shifted. timm decides from its native image size which
blocks shift, so that those of the last stage (7 x 7 at 224 x 224, one window) never do, and shifts before it pads.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.models.swin_transformer import SwinTransformerBlock, window_partition
from torch import Tensor, nn


class ShiftedWindows(SwinTransformerBlock):
    """timm's block, with windows as above; parameters keep their names."""

    def _attn(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        windows, padded = cut_windows(self, x)
        attended = self.attn(windows, mask=self.get_attn_mask(padded))
        return put_windows_back(self, attended, padded, x.shape[1], x.shape[2])


def shift_every_second_block(network: nn.Module) -> None:
    """Turn the Swin blocks of a timm network into :class:`ShiftedWindows`."""
    for module in network.modules():
        if type(module) is SwinTransformerBlock:
            block: Any = module
            rows, columns = block.window_size
            block.shift_size = (rows // 2, columns // 2) if any(block.target_shift_size) else (0, 0)
            block.dynamic_mask, block.attn_mask = True, None
            block.__class__ = ShiftedWindows


def shift_as_published(network: nn.Module) -> None:
    """Give the Swin blocks of a network for one image size the windows of Microsoft's code: if the shorter side of a
    map is not larger than the window, that side becomes the window size in both directions, and nothing is shifted.
    (timm decides for rows and columns separately.) A map is padded before it is shifted."""
    shift_every_second_block(network)
    for module in network.modules():
        if isinstance(module, ShiftedWindows):
            block: Any = module
            shorter = min(block.input_resolution)
            if shorter == min(block.window_size):  # timm made it no larger than that side
                block.window_size, block.shift_size, block.window_area = (shorter, shorter), (0, 0), shorter**2
                block.attn.set_window_size(block.window_size)


def cut_windows(block: Any, x: Float[Tensor, "b h w c"]) -> tuple[Float[Tensor, "n p c"], Tensor]:
    """The block's windows, image by image, and the padded and shifted map from which they were cut."""
    rows, columns = block.window_size
    border = (0, 0, 0, -x.shape[2] % columns, 0, -x.shape[1] % rows)
    shift = (-block.shift_size[0], -block.shift_size[1])
    if not any(shift):
        x = F.pad(x, border)
    elif isinstance(block, ShiftedWindows):
        x = torch.roll(F.pad(x, border), shift, (1, 2))
    else:
        x = F.pad(torch.roll(x, shift, (1, 2)), border)
    return window_partition(x, block.window_size).flatten(1, 2), x


def put_windows_back(block: Any, windows: Float[Tensor, "n p k"], padded: Tensor, height: int,
                     width: int) -> Float[Tensor, "b h w k"]:
    """Undo :func:`cut_windows`."""
    rows, columns = block.window_size
    x = windows.unflatten(1, (rows, columns)).unflatten(
        0, (padded.shape[0], padded.shape[1] // rows, padded.shape[2] // columns))
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    shift = tuple(block.shift_size)
    if not any(shift):
        return x[:, :height, :width]
    if isinstance(block, ShiftedWindows):
        return torch.roll(x, shift, (1, 2))[:, :height, :width]
    return torch.roll(x[:, :height, :width], shift, (1, 2))
