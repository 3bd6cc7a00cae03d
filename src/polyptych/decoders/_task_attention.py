"""Attention between the tokens of all tasks, globally with reduced keys or pixel by pixel.

Source: Xu, Yang, Zhang, AAAI 2023, arXiv 2301.03461; keys averaged over windows as in PVTv2's linear form (Wang et al.,
CVMJ 2022, arXiv 2106.13797)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Attention(nn.MultiheadAttention):
    """Multi-head attention of batch-first tokens, its weights in torch's layout, without the matrix of scores."""

    def __init__(self, channels: int, heads: int):
        super().__init__(channels, heads, batch_first=True)

    def forward(self, query: Float[Tensor, "b n c"],  # type: ignore[override]
                keys: Float[Tensor, "b m c"]) -> Float[Tensor, "b n c"]:
        """Keys and values are the same tokens."""
        wq, wk, wv = self.in_proj_weight.chunk(3)
        bq, bk, bv = self.in_proj_bias.chunk(3)
        q, k, v = (self._split(F.linear(x, weight, bias))
                   for x, weight, bias in ((query, wq, bq), (keys, wk, bk), (keys, wv, bv)))
        attended = F.scaled_dot_product_attention(q, k, v)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def by_position(self, query: Float[Tensor, "b n c"], keys: Float[Tensor, "b n t c"]) -> Float[Tensor, "b n c"]:
        """Every query attends to the t tokens at its own position. (As separate sequences, positions would exceed the
        limits of CUDA's kernels.)"""
        (wq, wk, wv), (bq, bk, bv) = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q = F.linear(query, wq, bq).unflatten(-1, (self.num_heads, -1))
        k, v = (F.linear(keys, weight, bias).unflatten(-1, (self.num_heads, -1))
                for weight, bias in ((wk, bk), (wv, bv)))
        shares = (torch.einsum("bnhe,bnthe->bnth", q, k) / q.shape[-1] ** 0.5).softmax(2)
        return self.out_proj(torch.einsum("bnth,bnthe->bnhe", shares, v).flatten(2))

    def alone(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Every token attends only to itself: a linear map that does not depend on queries and keys."""
        return self.out_proj(F.linear(tokens, self.in_proj_weight.chunk(3)[2], self.in_proj_bias.chunk(3)[2]))

    def _split(self, x: Tensor) -> Float[Tensor, "b h n e"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def reduced(tokens: Float[Tensor, "b t c h w"], factor: int) -> Float[Tensor, "b m c"]:
    """Means over windows of factor x factor positions, of all tasks in one sequence."""
    b, t, c, h, w = tokens.shape
    pooled = F.avg_pool2d(tokens.reshape(b * t, c, h, w), factor, ceil_mode=True, count_include_pad=False)
    return pooled.view(b, t, c, -1).transpose(2, 3).flatten(1, 2)


def by_pixel(tokens: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b n t c"]:
    """The tasks' tokens at every pixel."""
    return tokens.permute(0, 3, 4, 1, 2).flatten(1, 2)
