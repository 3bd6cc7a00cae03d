"""Task prompts in a Swin transformer.

Source: Ye, Xu, ICLR 2023, https://openreview.net/forum?id=-CwPopPJda (TaskPrompter; its Cityscapes-3D network)
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import PatchEmbed
from timm.models.swin_transformer import (
    SwinTransformerBlock,
    SwinTransformerStage,
    WindowAttention,
)
from torch import Tensor, nn

from polyptych.backbones._stages import ChannelsFirst
from polyptych.backbones._windows import ShiftedWindows, cut_windows, put_windows_back
from polyptych.encoders._task_prompts import (
    ChannelPrompts,
    Lent,
    Level,
    PromptedStages,
    PromptOptions,
    attention,
    scores,
)


class PromptedSwinBlock(Lent, SwinTransformerBlock):  # type: ignore[misc]  # Lent.forward calls what it is given
    """timm's block, with prompts among its tokens."""


class PromptedShiftedWindows(Lent, ShiftedWindows):  # type: ignore[misc]
    """Our own block, with prompts among its tokens."""


class PromptedSwin(PromptedStages):
    """Every window gets a copy of all prompts. Prompts have no position: the position bias and the mask of shifted
    windows are 0 in their rows and columns. Their outputs are averaged over the windows. Scores for positions are put
    back where the pixels of their windows are; padding of windows is cropped. Between stages, prompts go through a
    LayerNorm and a linear layer to the next width.

    This transfers the paper's idea to Swin; it is not a copy of the published Cityscapes-3D network (1024x2048, another
    decoder), whose weights cannot be loaded here. That network

    - attends over channels by learned query, key-value and output projections on a fixed grid, with prompts before the
      block's norm, applied after the block's attention, whose output it reads;
    - passes the scores for positions (through strided convolutions) and for channels from stage to stage, whereas here
      each level has its own;
    - changes the prompts' width between stages by a linear layer without bias and without LayerNorm;
    - reads its maps after patch merging, at strides 8, 16, 32 and 32, the last one after the final norm; here they are
      read before patch merging, at strides 4, 8, 16 and 32 (``--backbone.norm-maps`` adds a norm to each).
    """

    lent: ClassVar = {SwinTransformerBlock: PromptedSwinBlock, ShiftedWindows: PromptedShiftedWindows}

    def __init__(self, stages: nn.ModuleList, options: PromptOptions):
        stem: Any = stages[0]
        groups = [list(inside(stage).blocks) for stage in stages[1:]]
        widths = [group[-1].dim for group in groups]
        (height, width), (rows, columns) = options.size, stem.stage.patch_size
        grids = [(-(-height // (rows << i)), -(-width // (columns << i))) for i in range(len(groups))]
        super().__init__(groups, widths, grids, options)

    @staticmethod
    def fits(stages: nn.ModuleList) -> bool:
        """timm's Swin transformer (the first one, with its own blocks)."""
        stem, *layers = (inside(stage) for stage in stages)
        return isinstance(stem, PatchEmbed) and all(type(layer) is SwinTransformerStage and all(
            type(block) in (SwinTransformerBlock, ShiftedWindows) and type(block.attn) is WindowAttention
            and cast(int, block.dim) % block.attn.num_heads == 0 for block in layer.blocks) for layer in layers)

    def forward(self, stages: nn.ModuleList, image: Float[Tensor, "b 3 h w"]) -> list[Level]:
        x = stages[0](image).permute(0, 2, 3, 1)
        prompts = self.prompts.expand(x.shape[0], -1, -1)
        levels = []
        for number, (stage, modules) in enumerate(zip(stages[1:], self.channels, strict=True)):
            layer = inside(stage)
            x = layer.downsample(x)
            if number:
                prompts = self.between[number - 1](prompts)
            for index, (block, channels) in enumerate(zip(layer.blocks, modules, strict=True)):
                x, prompts, found = block(self._block, channels, x, prompts, last=index == len(modules) - 1)
            head = block.attn.qkv.out_features // 3 // block.attn.num_heads
            assert found is not None
            spatial, channel, affinities = found
            levels.append(Level(x.permute(0, 3, 1, 2), spatial, channel, affinities, head, channels.pixels))
        return levels

    def _block(self, block: Any, channels: ChannelPrompts, x: Float[Tensor, "b h w c"],
               prompts: Float[Tensor, "b t c"],
               last: bool) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor] | None]:
        """``x`` and ``prompts`` after the block; for the last block of a level, also the three kinds of scores."""
        (b, height, width, _), count = x.shape, prompts.shape[1]
        tokens = torch.cat([prompts, x.flatten(1, 2)], dim=1)
        normed = block.norm1(tokens)
        asking, patches = normed[:, :count], normed[:, count:].unflatten(1, (height, width))
        windows, padded = cut_windows(block, patches)
        each = len(windows) // b
        attended, queries, keys = attention(
            block.attn, torch.cat([asking.repeat_interleave(each, dim=0), windows], dim=1),
            _bias(block, padded, count, b))
        places = put_windows_back(block, attended[:, count:], padded, height, width).flatten(1, 2)
        attended = torch.cat([attended[:, :count].unflatten(0, (b, each)).mean(1), places], dim=1)
        update, channel = channels(asking, patches.permute(0, 3, 1, 2), wanted=last)
        tokens = self.finish_block(block, tokens, attended, update)
        x, prompts = tokens[:, count:].unflatten(1, (height, width)), tokens[:, :count]
        if channel is None:
            return x, prompts, None
        spatial = scores(queries[:, :, :count], keys[:, :, count:])  # (b*windows heads t pixels)
        heads = spatial.shape[1]
        spatial = put_windows_back(block, spatial.flatten(1, 2).transpose(1, 2), padded, height, width)
        spatial = spatial.permute(0, 3, 1, 2).unflatten(1, (heads, count))
        one = slice(None, None, each)  # scores between prompts are the same in every window
        return x, prompts, (spatial, channel, scores(queries[one, :, :count], keys[one, :, :count]))


def inside(stage: nn.Module) -> Any:
    """timm's part of a stage of the backbone."""
    return stage.stage if isinstance(stage, ChannelsFirst) else stage


def _bias(block: Any, padded: Float[Tensor, "b h w c"], count: int, batch: int) -> Float[Tensor, "n heads p p"]:
    """What timm adds to the attention scores within a window (position bias, and the mask of shifted windows); 0 for
    prompts."""
    bias = block.attn._get_rel_pos_bias()
    mask = block.get_attn_mask(padded) if block.dynamic_mask else block.attn_mask
    if mask is not None:
        bias = (bias + mask.unsqueeze(1)).repeat(batch, 1, 1, 1)
    return F.pad(bias, (count, 0, count, 0))
