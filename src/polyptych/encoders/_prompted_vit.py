"""Task prompts in a plain vision transformer.

Source: Ye, Xu, ICLR 2023, https://openreview.net/forum?id=-CwPopPJda (TaskPrompter)
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from polyptych.backbones._stages import TokenBlocks, TokenEmbedding
from polyptych.encoders._task_prompts import (
    ChannelPrompts,
    Lent,
    Level,
    PromptedStages,
    PromptOptions,
    attention,
    scores,
)


class PromptedBlock(Lent, Block):  # type: ignore[misc]  # Lent.forward calls the code it is given
    """A block with prompts among its tokens."""


class PromptedViT(PromptedStages):
    """In every block's attention, prompts precede class tokens, register tokens and patches; they have no position."""

    lent: ClassVar = {Block: PromptedBlock}

    def __init__(self, stages: nn.ModuleList, options: PromptOptions):
        embedding: Any = stages[0]
        rows, columns = embedding.model.patch_embed.patch_size
        grid = (-(-options.size[0] // rows), -(-options.size[1] // columns))
        blocks = [list(stage.blocks) for stage in stages[1:]]  # type: ignore[arg-type]
        super().__init__(blocks, [embedding.model.embed_dim] * len(blocks), [grid] * len(blocks), options)

    @staticmethod
    def fits(stages: nn.ModuleList) -> bool:
        """Only timm's plain blocks and attention; other kinds compute attention scores differently."""
        return isinstance(stages[0], TokenEmbedding) and all(
            isinstance(stage, TokenBlocks) and all(
                type(block) is Block and type(block.attn) is Attention and block.attn.qkv.in_features
                % block.attn.num_heads == 0 for block in stage.blocks) for stage in stages[1:])

    def forward(self, stages: nn.ModuleList, image: Float[Tensor, "b 3 h w"]) -> list[Level]:
        state = stages[0](image)
        grid, *prefix = [state] if isinstance(state, Tensor) else state
        prefix = prefix if self.options.prefix_tokens else []
        height, width = grid.shape[-2:]
        # (b n d): prompts, class and register tokens, patches
        tokens = torch.cat([self.prompts.expand(grid.shape[0], -1, -1),
                            *(x.flatten(2).transpose(1, 2) for x in (*prefix, grid))], dim=1)
        levels = []
        for stage, modules in zip(stages[1:], self.channels, strict=True):
            blocks: Any = stage.blocks
            for number, (block, channels) in enumerate(zip(blocks, modules, strict=True)):
                last = number == len(blocks) - 1
                tokens, found = block(self._block, channels, tokens, height, width, last)
            patches = tokens[:, -height * width:]
            norm: Any = stage.norm
            x = _map(patches if norm is None else norm(patches), height, width)
            assert found is not None
            spatial, channel, affinities = found
            levels.append(Level(x, spatial, channel, affinities, block.attn.head_dim, channels.pixels))
        return levels

    def _block(self, block: Any, channels: ChannelPrompts, tokens: Tensor, height: int, width: int,
               last: bool) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor] | None]:
        """``tokens`` after the block; for the last block of a level, also the three kinds of scores."""
        count, patches = len(self.prompts), height * width
        normed = block.norm1(tokens)
        attended, queries, keys = attention(block.attn, normed)
        update, channel = channels(normed[:, :count], _map(normed[:, -patches:], height, width), wanted=last)
        tokens = self.finish_block(block, tokens, attended, update)
        if channel is None:
            return tokens, None
        spatial = scores(queries[:, :, :count], keys[:, :, -patches:]).unflatten(3, (height, width))
        return tokens, (spatial, channel, scores(queries[:, :, :count], keys[:, :, :count]))


def _map(tokens: Float[Tensor, "b n c"], height: int, width: int) -> Float[Tensor, "b c h w"]:
    return tokens.transpose(1, 2).unflatten(2, (height, width))

