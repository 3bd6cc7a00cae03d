"""MLoRE: every task mixes low-rank experts that all tasks share, image by image.

Source: Yang et al., CVPR 2024, arXiv 2403.17749
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import trunc_normal_
from torch import Tensor, nn

from polyptych.decoders._base import Decoder
from polyptych.decoders._blocks import SingleValueBatchNorm, common_spec, for_each_pyramid
from polyptych.decoders._cross_task import grid_of
from polyptych.ops import exporting, without_autocast
from polyptych.ops.resize import resize
from polyptych.types import Features, FeatureSpec, Output, TaskFeatures

STRIDE = 4  # of the predictions, or that of the finest map
NEVER = -1e10  # the logit of an expert that does not take part


class MLoRE(Decoder):
    """``final[task]`` has a quarter of the image's resolution. For every map l of the pyramid, with F_l a 1x1
    convolution of it to ``width``, resized to the finest map (the paper's ViT gives four of stride 16,
    ``--backbone.vit-pyramid taps``):

        V_lt = M2_lt(M1_lt(F_l))                        two mixtures of experts (:class:`Mixture`)
        Z_t = sum over l of softmax_l(mask_t(V_.t)) V_lt       a weight for each map at every position
        prediction = convolutions of Z_t at 1/4

    The experts, and a convolution parallel to them, are shared by all tasks: tasks share weights but not features, so
    ``refines`` is false.

    As in the authors' code, unlike the paper: both mixtures are followed by BatchNorm, GELU and a 1x1 convolution; a
    task's own low-rank path is multiplied by another output of the router; the shared 3x3 convolution passes no
    gradient to the features; and the sum of the experts has its own BatchNorm.

    The authors' routers have one weight per position of the training images; here they are resampled for other sizes.
    Their code adds ``balance`` x (standard deviation / mean)^2 of the experts' weights, for every mixture, to the
    weighted sum of losses; here it is added to every task's loss before weighting (``Output.penalty``), so divide
    ``balance`` by the sum of the tasks' weights (the recipes do).

    Experts are linear, so for one image and task all paths together are a single 3x3 convolution. In evaluation its
    kernel is mixed first, which gives the same result up to rounding with much less work. The kernels of the experts
    (experts x width^2 x 9 numbers per mixture) are cached until the weights change or training continues.

    Raises:
        InputError: a bad option, or tasks whose pyramids differ in shape.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        width: int = 192
        """Channels of all features (published: 452 on PASCAL and 768 on NYUD with ViT-L, 640 with ViT-B)."""
        ranks: tuple[int, ...] = tuple(range(16, 129, 8))
        """Rank of each expert (published on NYUD: 16 to 240 in steps of 16)."""
        task_rank: int = 72
        """Rank of each task's own low-rank path (published: 72 on PASCAL, 16 on NYUD, 64 with ViT-B)."""
        active: int = 9
        """Number of experts that are active for an image and task."""
        renormalize: bool = False
        """Normalize the weights of the active experts to sum to one (published: on NYUD); otherwise they keep their
        softmax weights over all experts."""
        balance: float = 5e-6
        """Weight of the penalty for uneven use of experts (published: 3e-4, with loss weights that add up to 68)."""
        size: tuple[int, int] = (512, 512)
        """Height and width of the training images, which determine the grid of the routers; they are resampled for any
        other size."""
        merge: bool = True
        """Mix kernels before convolving in evaluation."""

        def __post_init__(self) -> None:
            self.require("width", self.width >= 4, "4 or more")
            self.require("ranks", bool(self.ranks) and min(self.ranks) >= 1, "one or more numbers of at least 1")
            self.require("task_rank", self.task_rank >= 1, "1 or more")
            self.require("active", 1 <= self.active <= len(self.ranks), f"1 to {len(self.ranks)}, the experts")
            self.require("balance", 0 <= self.balance < math.inf, "a number of at least 0")
            self.require("size", min(self.size) > 0, "a positive height and width")

        def ablation(self) -> dict[str, Decoder.Config]:
            return {"every expert for every image": replace(self, active=len(self.ranks)),
                    "without balance": replace(self, balance=0.0), "the whole": self}

    def __init__(self, config: Config, *, features: dict[str, FeatureSpec], channels: dict[str, int]):
        super().__init__()
        spec, width = common_spec(features, "mlore"), config.width
        self.stride, self.balance, tasks = spec.strides[0], config.balance, tuple(channels)
        grid = grid_of(config.size, self.stride, spec.multiple or spec.strides[-1])
        self.enter = nn.ModuleList(nn.Conv2d(c, width, 1) for c in spec.channels)
        # Any: type checkers do not know what a container of containers holds.
        self.mixtures: Any = nn.ModuleList(nn.ModuleList(Mixture(tasks, config, grid) for _ in range(2))
                                           for _ in spec.channels)
        levels = len(spec.channels)
        self.mask = nn.ModuleDict({task: nn.Sequential(
            nn.Conv2d(levels * width, width, 1), SingleValueBatchNorm(width), nn.GELU(),
            nn.Conv2d(width, levels, 3, padding=1)) for task in tasks})
        self.heads = nn.ModuleDict({task: _head(width, c) for task, c in channels.items()})

    def forward(self, features: TaskFeatures) -> Output:
        mixed: dict[str, list[Tensor]] = {task: [] for task in self.heads}
        weights = []
        first = next(iter(features.values())).maps[0]
        size = (first.shape[-2], first.shape[-1])
        for level, (enter, mixtures) in enumerate(zip(self.enter, self.mixtures, strict=True)):
            def entered_map(pyramid: Features, enter: Any = enter, level: int = level) -> Tensor:
                return resize(enter(pyramid.maps[level]), size)

            entered = for_each_pyramid(entered_map, features)
            x = {task: entered[task] for task in mixed}
            for mixture in mixtures:
                x, gates = mixture(x)
                weights.append(gates)
            for task, y in x.items():
                mixed[task].append(y)
        final = {}
        for task, maps in mixed.items():
            shares = self.mask[task](torch.cat(maps, dim=1)).softmax(1)
            total = sum(share * y for share, y in zip(shares.split(1, dim=1), maps, strict=True))
            assert isinstance(total, Tensor)
            if self.stride > STRIDE:
                total = resize(total, (-(-size[0] * self.stride // STRIDE), -(-size[1] * self.stride // STRIDE)))
            final[task] = self.heads[task](total)
        penalty = self.balance * sum((unevenness(gates) for gates in weights), torch.zeros((), device=first.device)
                                     ) if self.training and self.balance else None
        return Output(final, penalty=penalty)


def unevenness(gates: Float[Tensor, "t b k"]) -> Float[Tensor, ""]:
    """(standard deviation / mean)^2 of the experts' mean weights; 0 of a single expert."""
    means = gates.float().mean((0, 1))
    return means.var() / means.mean() ** 2 if len(means) > 1 else means.sum() * 0


class Mixture(nn.Module):
    """With a = conv1x1(x) of a task's map x, and the outputs of its :class:`Router` for a, a weight g_k per expert and
    a factor m:

        E = BatchNorm(sum over k of g_k conv1x1(conv3x3(a)))     k-th expert, to its rank and back; of all tasks
        S = m conv1x1(conv3x3(a))                                the task's own, to its rank and back
        G = conv3x3(a without gradient)                          of all tasks
        result = conv1x1(GELU(BatchNorm(E + S + G)))

    The first layers of all experts run as one convolution, and so do the last.
    """

    def __init__(self, tasks: Sequence[str], config: MLoRE.Config, grid: tuple[int, int]):
        super().__init__()
        width, experts, total = config.width, len(config.ranks), sum(config.ranks)
        self.ranks, self.active, self.renormalize = config.ranks, config.active, config.renormalize
        self.merge, self.kernels = config.merge, _Kernels()
        self.enter = nn.ModuleDict({task: nn.Conv2d(width, width, 1) for task in tasks})
        self.route = nn.ModuleDict({task: Router(width, experts, grid) for task in tasks})
        self.down, self.up = nn.Conv2d(width, total, 3, padding=1), nn.Conv2d(total, width, 1, bias=False)
        self.offset = nn.Parameter(torch.zeros(experts, width))
        self.own: Any = nn.ModuleDict({task: nn.Sequential(
            nn.Conv2d(width, config.task_rank, 3, padding=1), nn.Conv2d(config.task_rank, width, 1))
            for task in tasks})
        self.shared = nn.Conv2d(width, width, 3, padding=1)
        self.norm_experts = nn.ModuleDict({task: SingleValueBatchNorm(width) for task in tasks})
        self.norm = nn.ModuleDict({task: SingleValueBatchNorm(width) for task in tasks})
        self.leave = nn.ModuleDict({task: nn.Conv2d(width, width, 1) for task in tasks})
        with torch.no_grad():  # initialize every expert's second layer as for its own rank; first layers already are
            nn.init.zeros_(self.down.bias)  # type: ignore[arg-type]
            for part in self.up.weight.split(config.ranks, dim=1):
                part.copy_(nn.init.kaiming_uniform_(torch.empty_like(part), a=5**0.5))

    def forward(self, x: dict[str, Float[Tensor, "b c h w"]]) -> tuple[dict[str, Float[Tensor, "b c h w"]],
                                                                      Float[Tensor, "t b k"]]:
        """The output maps, and the weight of every expert for every task and image."""
        entered = {task: enter(x[task]) for task, enter in self.enter.items()}
        routes = {task: route(entered[task]) for task, route in self.route.items()}
        gates = {task: self.sparse(logits) for task, (logits, _) in routes.items()}
        scales = {task: scale for task, (_, scale) in routes.items()}
        merged = self.merge and not self.training and not torch.is_grad_enabled() and not exporting()
        joined = (self._merged if merged else self._in_parts)(entered, gates, scales)
        leave: Any = self.leave
        return ({task: leave[task](F.gelu(norm(joined[task]))) for task, norm in self.norm.items()},
                torch.stack(list(gates.values())))

    def sparse(self, logits: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Expert weights: zero except for the largest."""
        if self.renormalize:
            return torch.where(self._largest(logits), logits, NEVER).softmax(-1)
        weights = logits.softmax(-1)
        return torch.where(self._largest(weights), weights, 0)

    def _largest(self, x: Float[Tensor, "b k"]) -> Tensor:
        places = x.topk(self.active, dim=-1).indices
        return torch.zeros_like(x, dtype=torch.bool).scatter(-1, places, True)

    def _in_parts(self, entered: dict[str, Tensor], gates: dict[str, Tensor], scales: dict[str, Tensor]
                  ) -> dict[str, Tensor]:
        together = torch.cat(list(entered.values()))
        weights = torch.cat(list(gates.values()))
        of_channels = torch.cat([weights[:, k:k + 1].expand(-1, rank) for k, rank in enumerate(self.ranks)], dim=1)
        experts = self.up(self.down(together) * of_channels[..., None, None]) + (weights @ self.offset)[..., None, None]
        parts = experts.unflatten(0, (len(entered), -1)).unbind()  # unlike chunk, this exports for any batch size
        shared = self.shared(together.detach()).unflatten(0, (len(entered), -1)).unbind()
        return {task: self.norm_experts[task](part) + scales[task][..., None, None] * self.own[task](entered[task]) + g
                for task, part, g in zip(entered, parts, shared, strict=True)}

    def _merged(self, entered: dict[str, Tensor], gates: dict[str, Tensor], scales: dict[str, Tensor]
                ) -> dict[str, Tensor]:
        kernels, offsets = self.kernels.of(self)
        joined = {}
        for task, x in entered.items():
            norm: Any = self.norm_experts[task]
            factor = norm.weight / (norm.running_var + norm.eps).sqrt()
            own, own_offset = kernels[task], offsets[task]
            kernel = ((gates[task] @ kernels["experts"].flatten(1)).unflatten(1, own.shape)
                      * factor[:, None, None, None] + scales[task][..., None, None, None] * own + self.shared.weight)
            offset = ((gates[task] @ offsets["experts"] - norm.running_mean) * factor + norm.bias
                      + scales[task] * own_offset + self.shared.bias)
            batch, _, height, width = x.shape
            y = F.conv2d(x.reshape(1, -1, height, width), kernel.flatten(0, 1).to(x.dtype), padding=1, groups=batch)
            joined[task] = y.view(x.shape) + offset[..., None, None].to(x.dtype)
        return joined

    def train(self, mode: bool = True) -> Mixture:
        self.kernels = _Kernels()
        return super().train(mode)


class _Kernels:
    """The 3x3 kernels that equal the two layers of every expert, and of every task's own path; computed again when a
    weight has changed."""

    def __init__(self) -> None:
        self.made_of: tuple[Any, ...] = ()
        self.kernels: dict[str, Tensor] = {}
        self.offsets: dict[str, Tensor] = {}

    def of(self, mixture: Mixture) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Kernels and biases: by task (c c 3 3) and (c), for ``experts`` (k c c 3 3) and (k c)."""
        sources = [mixture.down.weight, mixture.down.bias, mixture.up.weight, mixture.offset, *mixture.own.parameters()]
        # Tensors made in inference mode have no version counter, but nothing changes them in place either.
        state = tuple((x.data_ptr(), 0 if x.is_inference() else x._version, x.dtype) for x in sources)
        if state != self.made_of:
            with without_autocast(sources[0].device):
                self._make(mixture)
            self.made_of = state
        return self.kernels, self.offsets

    def _make(self, mixture: Mixture) -> None:
        down, ranks = mixture.down, list(mixture.ranks)
        assert down.bias is not None
        parts = list(zip(mixture.up.weight[:, :, 0, 0].split(ranks, dim=1), down.weight.split(ranks),
                         down.bias.split(ranks), strict=True))
        self.kernels = {task: torch.einsum("or,rihw->oihw", layers[1].weight[:, :, 0, 0], layers[0].weight)
                        for task, layers in mixture.own.items()}
        self.offsets = {task: layers[1].weight[:, :, 0, 0] @ layers[0].bias + layers[1].bias
                        for task, layers in mixture.own.items()}
        self.kernels["experts"] = torch.stack([torch.einsum("or,rihw->oihw", up, weight) for up, weight, _ in parts])
        self.offsets["experts"] = torch.stack([up @ bias for up, _, bias in parts]) + mixture.offset


class Router(nn.Module):
    """Logits of the experts, and a factor for the task's own path, computed from the task's map.

    Half of its input is the mean over positions of a small network; the other half is a weighted sum of every channel
    over positions, with one learned weight per position. In training, noise is added to the logits, with a scale that
    the router predicts.

    Args:
        grid: height and width of the grid of weights.
    """

    def __init__(self, width: int, experts: int, grid: tuple[int, int]):
        super().__init__()
        half = width // 4
        self.experts, self.grid = experts, grid
        self.enter, self.norm, self.leave = nn.Conv2d(width, half, 1), nn.LayerNorm(half), nn.Conv2d(half, half, 1)
        self.weigh, self.norm_sums = nn.Linear(grid[0] * grid[1], 1), nn.LayerNorm(width)
        self.leave_sums = nn.Conv2d(width, half, 1)
        self.decide = nn.Conv2d(2 * half, 2 * experts + 1, 1)
        trunc_normal_(self.weigh.weight, std=0.02)
        nn.init.zeros_(self.weigh.bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b 1"]]:
        seen = self.norm(self.enter(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        means = self.leave(F.gelu(seen)).mean((2, 3), keepdim=True)
        sums = self.leave_sums(F.gelu(self.norm_sums(self._sums(x)))[..., None, None])
        logits, noise, scale = self.decide(torch.cat([means, sums], dim=1)).flatten(1).split(
            [self.experts, self.experts, 1], dim=1)
        if self.training:
            logits = logits + torch.randn_like(logits) * noise
        return logits, scale

    def _sums(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        size = (x.shape[-2], x.shape[-1])
        if size == self.grid:
            return self.weigh(x.flatten(2))[..., 0]
        # On another grid the weights are rescaled: the sum must not grow with the number of positions.
        weights = resize(self.weigh.weight.view(1, 1, *self.grid), size)
        share = self.grid[0] * self.grid[1] / (size[0] * size[1])
        return (x * weights * share).sum((2, 3)) + self.weigh.bias


def _head(width: int, channels: int) -> nn.Sequential:
    mix, predict = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, channels, 1)
    trunc_normal_(mix.weight, std=0.02)  # as published
    nn.init.normal_(predict.bias, std=0.02)  # type: ignore[arg-type]
    return nn.Sequential(mix, SingleValueBatchNorm(width), nn.GELU(), predict)
