"""Cross-task affinity learning (CTAL), the part that EMA-Net's two variants share.

Sinodinos and Armanfard, WACV 2025, arXiv 2401.11124. With g_s(i) the feature of task s at position i scaled to unit
length, V_t a projection of task t's features, and K_t[i], b_t[i] a k x k filter over tasks and its bias *of every
position* i, task t receives

    A_s[i, p] = g_s(i) . g_s(p)                                  how similar two positions are for task s
    M_t[i, p] = b_t[i] + sum_s sum_d K_t[i, s, d] A_s[i, p + d]  a filter over the map of similarities to position i
    O_t(i)    = sum_p V_t(p) M_t[i, p]                           values gathered from the whole image
    X_t       = gamma O_t + (1 - gamma) F_t

There is no softmax and no row normalization, so O grows with the number of positions N; BatchNorm follows.

Differences from the authors' code (EMA-Net, and its successor CTAL):

- their filters are shared by all receiving tasks, so that every M_t is the same; the figure in the paper has one per
  task, as we do (``fusion="shared"`` is their code);
- they store one N x N matrix per task and another one; we never store any (:mod:`polyptych.ops.affinity`);
- their filters fit a single image size; ours are resampled for others (:class:`PositionwiseFilters`);
- they divide by lengths with a negligible lower bound, so the gradient of a feature vector of length zero (a position
  at which every ReLU is inactive) explodes, although its value is finite; our lower bound keeps the gradient bounded.

The paper's tables were not accessible when this was written; layers, widths, gamma and initialization follow the code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.decoders._base import Decoder
from polyptych.decoders._blocks import BottleneckHead, SingleValueBatchNorm
from polyptych.ops.affinity import SMALLEST_LENGTH, cross_task_affinity
from polyptych.ops.winograd import Convolution3x3
from polyptych.tasks._base import resize
from polyptych.types import FeatureSpec


@dataclass(frozen=True, kw_only=True)
class CrossTaskConfig(Decoder.Config):
    """Options of both variants.

    Raises:
        InputError: an even kernel, a gamma outside [0, 1], an empty size, or a width that is not a multiple of 4.
    """

    size: tuple[int, int] = (288, 384)
    """Height and width of the training images. The position-wise filters are learned on the grid of this size and
    resampled for any other."""
    scale: Literal[4, 8, 16] = 4
    """Stride of the grid on which positions are compared (or that of the backbone's finest map, if it is coarser)."""
    fusion: Literal["per_task", "shared"] = "per_task"
    """One filter per position and target task, as in the paper, or one per position for all tasks, as in the published
    code."""
    kernel_size: int = 3
    """Size of the filters; must be odd."""
    gamma: float = 0.05
    """Share of the features gathered from other positions and tasks; at 0, tasks are independent."""
    learn_gamma: bool = False
    """Learn one gamma per task, starting from that value (the published one is fixed)."""
    width: int = 128
    """Channels of the features that are compared and mixed; must be a multiple of 4."""
    affinity: bool = True
    """Mix the tasks; without it, the rest of the network stays the same (ablation)."""
    deep_supervision: bool = True
    """Make and supervise initial predictions (ablation)."""
    method: Literal["auto", "linear", "streamed", "materialized"] = "auto"
    """How affinities are applied. The results differ only by rounding; auto estimates which method is fastest."""

    def __post_init__(self) -> None:
        self.require("kernel_size", self.kernel_size > 0 and self.kernel_size % 2 == 1, "a positive odd number")
        self.require("gamma", 0 <= self.gamma <= 1, "a share from 0 to 1")
        self.require("size", min(self.size) > 0, "a positive height and width")
        self.require("width", self.width > 0 and self.width % 4 == 0, "a positive multiple of 4")

    def parts(self) -> dict[str, str]:
        """The parts that the paper's ablation adds one by one, and the option for each."""
        return {"CTAL": "affinity", "deep supervision": "deep_supervision"}

    def ablation(self) -> dict[str, Decoder.Config]:
        """The paper's ablation: without any part, then adding one at a time; then the full decoder with positions
        compared on other grids."""
        parts = self.parts()
        config = self.switched(False, *parts.values())
        steps: dict[str, Decoder.Config] = {"none of its parts": config}
        for name, option in parts.items():
            config = config.switched(True, option)
            steps[f"+ {name}"] = config
        return steps | {f"positions compared at 1/{scale}": replace(config, scale=scale)
                        for scale in (4, 8, 16) if scale != self.scale}

    def switched(self, on: bool, *options: str) -> CrossTaskConfig:
        """A copy with these options on or off."""
        values: dict[str, Any] = dict.fromkeys(options, on)
        return replace(self, **values)


class PositionwiseFilters(nn.Module):
    """A k x k filter over ``sources`` maps, and a bias, for every position of a grid and each of ``targets``.

    They are stored as maps on their grid, (target, source * k * k, row, column), so that another grid is a bilinear
    resampling, as for the position embeddings of a transformer. Initialized like a convolution with that fan-in.
    """

    def __init__(self, targets: int, sources: int, kernel_size: int, grid: tuple[int, int]):
        super().__init__()
        self.kernel_size, self.grid = kernel_size, grid
        fan_in = sources * kernel_size**2
        self.weight = nn.Parameter(torch.empty(targets, fan_in, *grid).uniform_(-1, 1) / math.sqrt(fan_in))
        self.bias = nn.Parameter(torch.empty(targets, 1, *grid).uniform_(-1, 1) / math.sqrt(fan_in))

    def forward(self, grid: tuple[int, int]) -> tuple[Float[Tensor, "t n s k k"], Float[Tensor, "t n"]]:
        """The filters at the positions (row by row) of ``grid``.

        On another grid they are also scaled by the ratio of the numbers of positions: the terms that they weight are
        summed over all positions, and the sum must not grow on a finer grid of the same image.
        """
        weight, bias = resize(self.weight, grid), resize(self.bias, grid)
        if grid != self.grid:
            share = math.prod(self.grid) / math.prod(grid)
            weight, bias = share * weight, share * bias
        k = self.kernel_size
        return weight.flatten(2).unflatten(1, (-1, k, k)).permute(0, 4, 1, 2, 3), bias.flatten(1)


class CrossTaskAffinity(nn.Module):
    """CTAL: every task's features, enriched by those of positions that all tasks find similar.

    The affinities are computed on a grid ``ratio`` times coarser than the features (averages of ratio x ratio
    positions); the result is upsampled before it is blended, so that the features keep their detail. From unit vectors
    to blending, arithmetic is at least float32, because sums over thousands of positions are unbounded.
    """

    undecayed = ("gamma",)

    def __init__(self, config: CrossTaskConfig, *, tasks: int, grid: tuple[int, int], ratio: int):
        super().__init__()
        self.method, self.ratio = config.method, ratio
        self.values = nn.ModuleList(Convolution3x3(config.width, config.width) for _ in range(tasks))
        self.shared = config.fusion == "shared"
        self.filters = PositionwiseFilters(1 if self.shared else tasks, tasks, config.kernel_size, grid)
        gamma = torch.full((tasks,), config.gamma)
        self.gamma: Tensor | float = nn.Parameter(gamma) if config.learn_gamma else config.gamma

    def forward(self, features: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b t c h w"]:
        maps = features.unbind(1)
        if self.ratio > 1:
            maps = tuple(F.avg_pool2d(x, self.ratio, ceil_mode=True) for x in maps)
        values = side_by_side([project(x) for project, x in zip(self.values, maps, strict=True)])
        with torch.autocast(features.device.type, enabled=False):
            precision = torch.promote_types(features.dtype, torch.float32)
            # Unit length makes the affinities cosines. Without it, the positions with the longest features would
            # dominate every sum, and the sums would grow with the features.
            unit = F.normalize(side_by_side(maps).to(precision), dim=2, eps=SMALLEST_LENGTH)
            kernel, bias = self.filters((maps[0].shape[-2], maps[0].shape[-1]))
            if self.shared:
                kernel, bias = kernel[0], bias[0]
            gathered = cross_task_affinity(unit, values.to(precision), kernel.to(precision), bias.to(precision),
                                           method=self.method)
            # Only the gathered features are resized: the features themselves never pass through the coarser grid.
            gathered = resize(gathered.flatten(0, 1), (features.shape[-2], features.shape[-1])).view_as(features)
            gamma = self.gamma.view(-1, 1, 1, 1) if isinstance(self.gamma, Tensor) else self.gamma
            return (gamma * gathered + (1 - gamma) * features).to(features.dtype)


class CrossTaskHeads(nn.Module):
    """From each task's features to its final prediction: a 1x1 convolution, CTAL, upsampling by two, a head.

    Args:
        channels_in: channels of each task's features.
        channels: channels of each task's prediction.
        spec: the pyramid; the features have the resolution of its finest map.
    """

    def __init__(self, config: CrossTaskConfig, *, channels_in: int, channels: dict[str, int], spec: FeatureSpec):
        super().__init__()
        width = config.width
        self.enter = nn.ModuleDict({task: nn.Conv2d(channels_in, width, 1) for task in channels})
        ratio = max(1, config.scale // spec.strides[0])
        self.affinity = None
        if config.affinity:
            grid = grid_of(config.size, spec.strides[0] * ratio, spec.multiple or spec.strides[-1])
            self.affinity = CrossTaskAffinity(config, tasks=len(channels), grid=grid, ratio=ratio)
        self.enlarge = nn.ModuleDict({task: nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2), SingleValueBatchNorm(width), nn.ReLU(inplace=True),
            Convolution3x3(width, width)) for task in channels})
        self.heads = nn.ModuleDict({task: BottleneckHead(width, width, c) for task, c in channels.items()})

    def forward(self, features: dict[str, Float[Tensor, "b _ h w"]]) -> dict[str, Float[Tensor, "b _ _ _"]]:
        """Predictions at twice the resolution of the features."""
        entered = side_by_side([enter(features[task]) for task, enter in self.enter.items()])
        mixed = entered if self.affinity is None else self.affinity(entered)
        return {task: self.heads[task](enlarge(x))[1]
                for (task, enlarge), x in zip(self.enlarge.items(), mixed.unbind(1), strict=True)}


def side_by_side(maps: Sequence[Float[Tensor, "b c h w"]]) -> Float[Tensor, "b t c h w"]:
    """Stack maps as channels of one image. Unlike :func:`torch.stack`, this keeps channels-last maps in their memory
    format, so that convolutions need no copies."""
    return torch.cat(list(maps), dim=1).unflatten(1, (len(maps), -1))


def grid_of(size: tuple[int, int], stride: int, multiple: int) -> tuple[int, int]:
    """The grid of positions at ``stride`` for an image of this size, which the network pads to multiples of
    ``multiple``."""
    height, width = (math.ceil(multiple * math.ceil(x / multiple) / stride) for x in size)
    return height, width
