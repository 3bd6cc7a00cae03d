"""InvPT's stages: all tasks attend to each other while the resolution rises.

A stage processes the tokens of all tasks together, shape (b t h w c): t tasks, h x w positions, c channels.

Source: Ye, Xu, ECCV 2022, arXiv 2203.07997
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from polyptych.decoders._blocks import SingleValueBatchNorm, convolution, for_each_pyramid
from polyptych.ops.resize import resize
from polyptych.types import Features, FeatureSpec, TaskFeatures

COARSEST = 32  # stride of the first stage; every further one halves it

Tokens: TypeAlias = Float[Tensor, "b t h w c"]
Scores: TypeAlias = Float[Tensor, "b g t _ _ k"]  # g heads, the queries of t tasks on a grid, the keys of all tasks


class CrossTaskAttention(nn.Module):
    """Every position of every task attends to all positions of all tasks, at reduced sizes.

    With D channels, g heads and, for each task, normalized tokens X of size h x w:

        Q = Linear(BatchNorm(depthwise 3x3 convolution of stride 2 of X)), ceil(h/2) x ceil(w/2) queries a task
        K, V = Linear(mean of X over cells of pool x pool), ceil(h/pool) x ceil(w/pool) keys a task
        S = Q K^T / sqrt(D/g)
        S = 1x1 convolution over heads of [S, message]        where there is a message
        result = Linear(softmax(S) V), on the queries' grid

    The message is S of the previous stage, before the softmax, upsampled (bilinear) along the queries' grid; all stages
    have the same grid of keys. The convolution and BatchNorm are task-specific, everything else is shared.

    Memory: S is stored only if it is a message or receives one, g t^2 (hw/4) (hw/pool^2) numbers an image, never g t^2
        (hw)^2.
    At stride 8 of 448x576 with four tasks and two heads that is 2 x 4032 x 252, 8 MB in float32, whereas attention
    between all tokens would take 2 x 16128 x 16128, 2 GB. Otherwise it is not stored at all.

    Args:
        pool: height and width of the cells over which keys and values are averaged.
        over: Q K^T is divided by the square root of the channels of one head, or of all heads together.
        receives, passes: whether there is a message, and whether the scores are passed to the next stage.
    """

    def __init__(self, tasks: Sequence[str], width: int, heads: int, pool: int, *, over: Literal["head", "all"],
                 receives: bool, passes: bool):
        super().__init__()
        self.heads, self.pool, self.passes = heads, pool, passes
        self.scale = (width // heads if over == "head" else width) ** -0.5
        self.reduce = nn.ModuleDict({task: nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, groups=width, bias=False), SingleValueBatchNorm(width))
            for task in tasks})
        self.query, self.key, self.value, self.join = (nn.Linear(width, width) for _ in range(4))
        self.fuse = nn.Conv2d(2 * heads, heads, 1) if receives else None

    def forward(self, x: Tokens, message: Scores | None) -> tuple[Float[Tensor, "b t hq wq c"], Scores | None]:
        reduced = torch.stack([layers(x[:, i].permute(0, 3, 1, 2)) for i, layers in enumerate(self.reduce.values())], 1)
        grid = (reduced.shape[1], reduced.shape[3], reduced.shape[4])
        means = F.avg_pool2d(as_maps(x), self.pool, ceil_mode=True)
        means = as_tokens(means, grid[0]).flatten(1, 3)
        q = self._split(self.query(reduced.permute(0, 1, 3, 4, 2).flatten(1, 3)))
        k, v = self._split(self.key(means)), self._split(self.value(means))
        scores = None
        if self.fuse is None and not self.passes:
            attended = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            raw = q @ k.transpose(-2, -1) * self.scale
            if self.fuse is not None:
                assert message is not None
                raw = self.fuse(torch.cat([raw, enlarge(message, grid[1:]).flatten(2, 4)], dim=1))
            attended = raw.softmax(dim=-1) @ v
            scores = raw.unflatten(2, grid) if self.passes else None
        return self.join(attended.transpose(1, 2).flatten(2)).unflatten(1, grid), scores

    def _split(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b g n d"]:
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


def enlarge(scores: Scores, size: tuple[int, int]) -> Float[Tensor, "b g t h2 w2 k"]:
    """Upsample bilinearly along the queries' grid, separately for every key."""
    batch, heads, tasks = scores.shape[:3]
    maps = resize(scores.flatten(0, 2).permute(0, 3, 1, 2), size)
    return maps.permute(0, 2, 3, 1).unflatten(0, (batch, heads, tasks))


def as_maps(x: Tokens) -> Float[Tensor, "bt c h w"]:
    return x.flatten(0, 1).permute(0, 3, 1, 2)


def as_tokens(maps: Float[Tensor, "bt c h w"], tasks: int) -> Tokens:
    return maps.permute(0, 2, 3, 1).unflatten(0, (-1, tasks))


class EncoderFeatures(nn.Module):
    """The encoder features of a stage: one 3x3 convolution per map, resized to the stage, summed.

    A map coarser than the stage goes through a transposed convolution of stride 2, a finer one through a convolution of
    stride 2; if the size still differs, it is resampled.

    Args:
        spec: the pyramid.
        indices: indices of the maps.
        stride: stride of the stage.
        width: channels of the stage.
    """

    def __init__(self, spec: FeatureSpec, indices: Sequence[int], stride: int, width: int):
        super().__init__()
        self.indices = tuple(indices)
        self.layers = nn.ModuleList(_to_stage(spec.channels[i], spec.strides[i], stride, width) for i in indices)

    def forward(self, features: Features, size: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        first, *others = (resize(layer(features.maps[i]), size)
                          for i, layer in zip(self.indices, self.layers, strict=True))
        return sum(others, first)


def _to_stage(channels: int, stride: int, target: int, width: int) -> nn.Module:
    if stride > target:
        return nn.ConvTranspose2d(channels, width, 3, stride=2, padding=1, output_padding=1)
    return nn.Conv2d(channels, width, 3, stride=2 if stride < target else 1, padding=1)


def maps_of_stages(count: int, stages: int) -> list[list[int]]:
    """Which maps of a pyramid each stage gets: the preliminary decoder reads the coarsest; the others go to the stages
    in turn, coarse to fine, and the last stage gets all that remain."""
    left = list(range(count - 2, -1, -1))
    return [left[i:] if i == stages - 1 else left[i:i + 1] for i in range(stages)]


class Stage(nn.Module):
    """One stage. Its input X is the sum of the encoder features and of the previous stage's maps (upsampled, then two
    3x3 convolutions of dilation 2 with BatchNorm and ReLU per task; the first stage takes them unchanged). Then:

        X = X + enlarged CrossTaskAttention(LayerNorm(X))
        X = X + MLP(LayerNorm(X))                              four times as wide inside, GELU
        Y = LayerNorm over the channels of all tasks of X, per task a 1x1 convolution (none in the first stage)

    X is passed to the next stage, Y is used for the prediction.

    Args:
        number: index of the stage, from 0.
        width_in, width: channels of the previous stage and of this stage.
        width_out: channels of Y.
        drop_path: probability that training skips attention, and the MLP, for a sample.
        attention: options of :class:`CrossTaskAttention`.
    """

    def __init__(self, number: int, tasks: Sequence[str], width_in: int, width: int, width_out: int, heads: int,
                 drop_path: float, encoder: EncoderFeatures | None, **attention: Any):
        super().__init__()
        self.encoder = encoder
        self.enlarge = nn.ModuleDict({task: nn.Sequential(
            *convolution(width_in, width, 3, dilation=2),
            *convolution(width, width, 3, dilation=2)) for task in tasks if number})
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = CrossTaskAttention(tasks, width, heads, 2 ** (number + 1), **attention)
        self.mlp = Mlp(width, 4 * width)
        self.drop_path = DropPath(drop_path)
        self.norm = nn.LayerNorm(len(tasks) * width)
        self.out = nn.ModuleDict({task: nn.Conv2d(width, width_out, 1) for task in tasks if number})

    def forward(self, maps: dict[str, Float[Tensor, "b _ _ _"]], features: TaskFeatures, size: tuple[int, int],
                message: Scores | None) -> tuple[dict[str, Float[Tensor, "b c h w"]],
                                                 dict[str, Float[Tensor, "b d h w"]], Scores | None]:
        """X and Y by task, and the scores.

        Args:
            features: features of the encoder.
            size: height and width of the stage.
        """
        if self.enlarge:
            maps = {task: self.enlarge[task](resize(x, size)) for task, x in maps.items()}
        if self.encoder is not None:
            given = for_each_pyramid(partial(self.encoder, size=size), features)
            maps = {task: x + given[task] for task, x in maps.items()}
        x = torch.stack(list(maps.values()), dim=1).permute(0, 1, 3, 4, 2)
        attended, scores = self.attention(self.norm1(x), message)
        x = x + self.drop_path(as_tokens(resize(as_maps(attended), size), len(maps)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        normed = self.norm(x.permute(0, 2, 3, 1, 4).flatten(3)).permute(0, 3, 1, 2).chunk(len(maps), dim=1)
        y = {task: self.out[task](part) if self.out else part for task, part in zip(maps, normed, strict=True)}
        return {task: x[:, i].permute(0, 3, 1, 2) for i, task in enumerate(maps)}, y, scores
