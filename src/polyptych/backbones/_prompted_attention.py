"""Attention with learned prompt tokens of a task before those of the image, which are discarded afterwards."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Attention
from timm.models.eva import EvaAttention
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

KNOWN = (WindowAttention, Attention, EvaAttention)


class Now:
    """The task for which task-dependent blocks currently run. (Not a module: it has no state to save.)"""

    task = ""


class PromptedAttention(nn.Module):
    """A timm attention layer with prompts. Prompts have no position: in windows, position bias and mask are 0 in their
    rows and columns; rotary embeddings do not rotate them. Each window has a copy of all prompts.

    Args:
        prompts: returns the prompts (p c) of the current task.
    """

    def __init__(self, inner: Any, now: Now, prompts: Prompts, index: int):
        super().__init__()
        self.inner, self.now, self.index, self.count = inner, now, index, prompts.count
        self._prompts = (prompts,)  # in a tuple, so as not to be a submodule: it belongs to the stage
        if isinstance(inner, EvaAttention):
            inner.num_prefix_tokens += prompts.count  # tokens that are not rotated

    def forward(self, x: Float[Tensor, "b n c"], *args: Any, **options: Any) -> Float[Tensor, "b n c"]:
        own = self._prompts[0](self.now.task, self.index).to(x.dtype)
        tokens = torch.cat([own.expand(x.shape[0], -1, -1), x], dim=1)
        if isinstance(self.inner, WindowAttention):
            return self._in_windows(tokens, *args, **options)[:, self.count:]
        return self.inner(tokens, *args, **options)[:, self.count:]

    def _in_windows(self, tokens: Float[Tensor, "b n c"], mask: Tensor | None = None) -> Float[Tensor, "b n c"]:
        layer: Any = self.inner
        b, n, _ = tokens.shape
        queries, keys, values = layer.qkv(tokens).reshape(b, n, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        bias = layer._get_rel_pos_bias()
        if mask is not None:
            bias = (bias + mask.unsqueeze(1)).repeat(b // mask.shape[0], 1, 1, 1)
        scores = (queries * layer.scale) @ keys.transpose(-2, -1)  # as timm does: windows are small
        weights = layer.attn_drop(layer.softmax(scores + F.pad(bias, (self.count, 0, self.count, 0))))
        return layer.proj_drop(layer.proj((weights @ values).transpose(1, 2).reshape(b, n, -1)))


class Prompts(nn.Module):
    """The prompts of a stage: for every task (blocks p c), initialized uniformly between -limit and limit."""

    def __init__(self, tasks: tuple[str, ...], blocks: int, count: int, width: int, limit: float):
        super().__init__()
        self.count = count
        self.of = nn.ParameterDict({task: nn.Parameter(torch.empty(blocks, count, width).uniform_(-limit, limit))
                                    for task in tasks})
        for parameter in self.of.values():
            parameter.adapts = True

    def forward(self, task: str, index: int) -> Float[Tensor, "p c"]:
        return self.of[task][index]
