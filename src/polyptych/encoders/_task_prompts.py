"""Task prompts for any transformer: learned tokens, and the module that attends over channels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Attention
from torch import Tensor, nn

from polyptych.ops.resize import resize

Channel = Literal["attended", "published"]


@dataclass(frozen=True)
class PromptOptions:
    """How prompts are built, independent of the transformer.

    Attributes:
        tasks: number of tasks, and so of prompts.
        size: height and width of the training images, which determine the grid of the channel attention.
        windows, channel, initial: see :class:`ChannelPrompts`.
        separate_drops: stochastic depth is drawn separately for prompts and for patches.
        prefix_tokens: keep class and register tokens, if the backbone has them.
    """

    tasks: int
    size: tuple[int, int]
    windows: int = 1
    channel: Channel = "attended"
    initial: Literal["uniform", "published"] = "uniform"
    separate_drops: bool = False
    prefix_tokens: bool = True


@dataclass(frozen=True)
class Level:
    """The output of one level of a prompted transformer. Scores are raw: inner products before scaling and softmax.

    Attributes:
        map: the patches.
        spatial: attention scores of a task's prompt for each position, per head.
        channel: its scores for each channel, in n x n windows.
        affinities: scores of the prompts (rows) for the prompts of all tasks (columns), per head.
        width: channels of one attention head's queries.
        pixels: number of products that are summed in each entry of ``channel``.
    """

    map: Float[Tensor, "b c h w"]
    spatial: Float[Tensor, "b heads t h w"]
    channel: Float[Tensor, "b t c n n"]
    affinities: Float[Tensor, "b heads t t"]
    width: int
    pixels: float


def new_prompts(tasks: int, width: int) -> nn.Parameter:
    """One token per task, drawn from a normal distribution of mean 1 and standard deviation 1, as published."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(tasks, width), mean=1.0, std=1.0))


@contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """Context without 16-bit autocast: scores multiply features, so they must not be rounded to 16 bits."""
    kind = x.device.type
    with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
        yield


def widened(x: Tensor) -> Tensor:
    """Convert 16-bit types to float32, and leave others as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def scores(queries: Float[Tensor, "b heads t d"], keys: Float[Tensor, "b heads n d"]) -> Float[Tensor, "b heads t n"]:
    """Raw scores: neither scaled nor passed through a softmax."""
    with full_precision(queries):
        return widened(queries) @ widened(keys).transpose(-2, -1)


def in_windows(x: Float[Tensor, "b k h w"], n: int) -> Float[Tensor, "b k n p n q"]:
    """Cut into n x n windows of p x q pixels; zeros below and to the right where they do not divide the map."""
    height, width = x.shape[-2:]
    p, q = -(-height // n), -(-width // n)
    return F.pad(x, (0, n * q - width, 0, n * p - height)).unflatten(3, (n, q)).unflatten(2, (n, p))


def over_windows(x: Float[Tensor, "b k n n"], height: int, width: int) -> Float[Tensor, "b k h w"]:
    """Repeat the value of every window at each of its pixels."""
    n = x.shape[-1]
    enlarged = x.repeat_interleave(-(-height // n), dim=2).repeat_interleave(-(-width // n), dim=3)
    return enlarged[..., :height, :width]


class ChannelPrompts(nn.Module):
    """Attention of a task's prompt over channels. The prompt becomes an image c_t = Linear_1(prompt), which attends to
    channels, window by window:

        R_td = sum of c_t x_d over the pixels of a window
        c'_t = sum_d softmax_d(R_td / sqrt(pixels of a window)) x_d          at every pixel of the window
        prompt += Linear_2(c'_t)

    The linear layers fix the grid, h0 x w0. On another grid, c is resized to it and c' back, and R is multiplied by the
    ratio of the numbers of pixels, so that scores have the same scale at every resolution.

    Source: Ye, Xu, ICLR 2023. Their code computes c' and discards it: ``published`` updates with Linear_2(c_t).

    Args:
        width: channels D of prompts and map.
        grid: h0, w0.
        windows: n, along each side.
        update: how the prompts are updated. ``None``: not at all (there is no Linear_2); ``"unused"``: not at all, but
            with the published code's unused Linear_2, frozen.
        initial: initialization of Linear_1 and Linear_2. ``"uniform"``: PyTorch's default; ``"published"``: truncated
            normal with standard deviation 0.02, biases 0.
    """

    def __init__(self, width: int, grid: tuple[int, int], windows: int, update: Channel | Literal["unused"] | None,
                 initial: Literal["uniform", "published"] = "uniform"):
        super().__init__()
        self.grid, self.windows, self.update = grid, windows, update
        self.pixels = grid[0] * grid[1] / windows**2
        self.ask = nn.Linear(width, grid[0] * grid[1])
        self.tell = nn.Linear(grid[0] * grid[1], width) if update is not None else None
        if self.tell is not None and update == "unused":
            self.tell.requires_grad_(False)
        if initial == "published":
            for layer in (self.ask, self.tell):
                if layer is not None:
                    nn.init.trunc_normal_(layer.weight, std=0.02)
                    nn.init.zeros_(layer.bias)

    def forward(self, prompts: Float[Tensor, "b t d"], x: Float[Tensor, "b d h w"], wanted: bool) -> tuple[
            Tensor | None, Float[Tensor, "b t d n n"] | None]:
        """The prompts' update (None if there is none) and R (None unless it is ``wanted``)."""
        asked = self.ask(prompts)
        attends = self.update == "attended"
        if not (wanted or attends):
            assert self.tell is not None
            return self.tell(asked), None
        told = self.tell(asked) if self.tell is not None and self.update == "published" else None
        size = (x.shape[-2], x.shape[-1])
        images = resize(asked.unflatten(2, self.grid), size)
        with full_precision(x):
            images, values = in_windows(widened(images), self.windows), in_windows(widened(x), self.windows)
            found = torch.einsum("btipjq,bdipjq->btdij", images, values)
            # A sum over pixels grows with their number; the ratio rescales it to the training grid.
            found = found * (self.grid[0] * self.grid[1] / (size[0] * size[1]))
            if not attends:
                return told, found
            weights = (found * self.pixels**-0.5).softmax(dim=2)
            attended = torch.einsum("btdij,bdipjq->btipjq", weights, values)
        attended = attended.flatten(4, 5).flatten(2, 3)[..., :size[0], :size[1]]
        assert self.tell is not None
        return self.tell(resize(attended, self.grid).flatten(2)), found if wanted else None


class Lent(nn.Module):
    """A block of a backbone whose layers an encoder runs in its own way: ``block(function, ...)`` calls
    ``function(block, ...)``. Because the block itself is called, hooks of sharding and recomputation work as for any
    other block. Called with a tensor, it is the original block.
    """

    def forward(self, first: Tensor | Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if isinstance(first, Tensor):
            return super().forward(first, *args, **kwargs)
        return first(self, *args, **kwargs)


class PromptedStages(nn.Module, ABC):
    """The learned parts of a prompted transformer; one subclass per kind of transformer. ``forward`` runs the
    backbone's own stages and returns a :class:`Level` after each.

    Args:
        stages: the blocks of every stage. They remain the backbone's, but become :class:`Lent`.
        widths: channels at every stage.
        grids: positions at every stage, for images of ``options.size``.

    Attributes:
        lent: for every class of block, its :class:`Lent` subclass.
        heads: number of attention heads in the last block of each stage.
        channels: a :class:`ChannelPrompts` for every block of every stage.
        between: layers that bring prompts to the width of the next stage; empty if all stages have the same width.
    """

    lent: ClassVar[Mapping[type, type[Lent]]]

    def __init__(self, stages: list[list[Any]], widths: list[int], grids: list[tuple[int, int]],
                 options: PromptOptions):
        super().__init__()
        self.options = options
        self.heads = tuple(blocks[-1].attn.num_heads for blocks in stages)
        for block in (block for blocks in stages for block in blocks):
            block.__class__ = self.lent.get(type(block), type(block))  # another encoder may have lent them before
        self.prompts = new_prompts(options.tasks, widths[0])
        # Drawn before the channel attention: the initial weights of a seed depend on the order of the draws.
        self.between = nn.ModuleList(nn.Sequential(nn.LayerNorm(before), nn.Linear(before, after))
                                     for before, after in pairwise(widths) if before != after)
        kinds = updates(options.channel, [len(blocks) for blocks in stages])
        self.channels: Any = nn.ModuleList(
            nn.ModuleList(ChannelPrompts(width, grid, options.windows, kind, options.initial) for kind in row)
            for width, grid, row in zip(widths, grids, kinds, strict=True))

    @staticmethod
    @abstractmethod
    def fits(stages: nn.ModuleList) -> bool:
        """Whether prompts can join these stages of a backbone."""

    @abstractmethod
    def forward(self, stages: nn.ModuleList, image: Float[Tensor, "b 3 h w"]) -> list[Level]:
        """Run normalized images through the backbone's stages."""

    def finish_block(self, block: Any, tokens: Float[Tensor, "b n d"], attended: Float[Tensor, "b n d"],
                     update: Float[Tensor, "b t d"] | None) -> Float[Tensor, "b n d"]:
        """The rest of a timm block after its attention: residual connections and MLP, with the prompts' update added to
        their rows (the first ones). Prompts and patches share all weights, and also the draws of stochastic depth
        unless those are separate."""
        if update is not None:
            attended = attended + F.pad(update, (0, 0, 0, attended.shape[1] - update.shape[1]))
        scale = (getattr(block, "ls1", nn.Identity()), getattr(block, "ls2", nn.Identity()))
        tokens = tokens + self._drop(block.drop_path1, scale[0](attended))
        return tokens + self._drop(block.drop_path2, scale[1](block.mlp(block.norm2(tokens))))

    def _drop(self, drop_path: nn.Module, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        if not self.options.separate_drops:
            return drop_path(tokens)
        count = self.options.tasks
        # Prompts precede the patches; two calls make two draws.
        return torch.cat([drop_path(tokens[:, :count]), drop_path(tokens[:, count:])], dim=1)


def updates(channel: Channel, depths: list[int]) -> list[list[Channel | Literal["unused"] | None]]:
    """The kind of update in each block of each level. The last block needs none, because nothing reads the prompts
    after it."""
    kinds: list[list[Any]] = [[channel] * depth for depth in depths]
    kinds[-1][-1] = None if channel == "attended" else "unused"
    return kinds


def attention(layer: Any, tokens: Float[Tensor, "b n d"], bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The output of timm's attention layer, without storing a matrix of scores; also its queries and keys (b heads n
    d)."""
    b, n, _ = tokens.shape
    queries, keys, values = layer.qkv(tokens).reshape(b, n, 3, layer.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    if hasattr(layer, "q_norm"):
        queries, keys = layer.q_norm(queries), layer.k_norm(keys)
    # Fused attention forms no matrix of scores. Only the rows of the prompts are needed later, and callers compute
    # those from the queries and keys.
    mask = None if bias is None else bias.to(queries.dtype)
    y = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask,
                                       dropout_p=layer.attn_drop.p if layer.training else 0.0)
    y = y.transpose(1, 2).flatten(2)
    if isinstance(layer, Attention):
        y = layer.norm(y) if layer.gate is None else layer.norm(y) * layer.gate(tokens).sigmoid()
    return layer.proj_drop(layer.proj(y)), queries, keys
