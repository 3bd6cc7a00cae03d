"""MTMamba's blocks: state space models along four paths over the maps of all tasks.

Maps are (b h w c), channels last. Wherever tasks have layers of one shape, their scans are one.

Source: Lin et al., ECCV 2024, arXiv 2407.02228; Lin et al., TPAMI 2025, arXiv 2408.15101
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import DropPath
from torch import Tensor, nn

from polyptych.ops.selective_scan import PATHS, selective_scan_over_map

SHORTEST, LONGEST, LEAST = 1e-3, 0.1, 1e-4  # initial step sizes, and their lower bound


class Paths(nn.Module):
    """The inputs of a selective scan of D channels with N states, for each of four paths; p are the R + 2 N numbers
    that ``read`` computes at a position:

        dt = softplus(V p[:R] + beta),  B = p[R:R + N],  C = p[R + N:],  A = -exp(rate),  and the skip

    Initialized as Mamba: A = -1 ... -N, skip 1, dt log-uniform between 0.001 and 0.1.

    Args:
        rank: R.
    """

    undecayed = ("rate", "skip", "beta")

    def __init__(self, channels: int, states: int, rank: int):
        super().__init__()
        self.sizes = [rank, states, states]
        self.read = nn.Parameter(torch.empty(PATHS, sum(self.sizes), channels).uniform_(-1, 1) / channels**0.5)
        self.v = nn.Parameter(torch.empty(PATHS, channels, rank).uniform_(-1, 1) / rank**0.5)
        dt = torch.empty(PATHS, channels).uniform_(math.log(SHORTEST), math.log(LONGEST)).exp().clamp(min=LEAST)
        self.beta = nn.Parameter(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        self.rate = nn.Parameter(torch.arange(1.0, states + 1).log().expand(PATHS, channels, -1).clone())
        self.skip = nn.Parameter(torch.ones(PATHS, channels))

    def forward(self, x: Float[Tensor, "b l d"]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """dt (k b l d), A (k n d), B and C (k b l n), the skip (k d), in float32 at least."""
        numbers = torch.einsum("kpd,bld->kblp", self.read, x)
        lengths, b, c = numbers.split(self.sizes, dim=-1)
        raw = torch.einsum("kdr,kblr->kbld", self.v, lengths)
        exact = torch.promote_types(raw.dtype, torch.float32)
        dt = F.softplus(raw.to(exact) + self.beta[:, None, None])
        return dt, -self.rate.to(exact).exp().transpose(1, 2), b, c, self.skip


def scan(paths: Sequence[nn.Module], x: Sequence[Float[Tensor, "b h w d"]],
         control: Sequence[Float[Tensor, "b h w d"]]) -> list[Float[Tensor, "b h w d"]]:
    """Scan every map of ``x`` with the step sizes, B and C that its ``paths`` compute from its ``control``; all maps
    run as one scan."""
    height, width = x[0].shape[1:3]
    read = [layer(y.flatten(1, 2)) for layer, y in zip(paths, control, strict=True)]
    dt, b, c = (torch.stack(parts, dim=2) for parts in ([r[i] for r in read] for i in (0, 2, 3)))
    a, skip = (torch.stack(parts, dim=1) for parts in ([r[i] for r in read] for i in (1, 4)))
    u = torch.stack([y.flatten(1, 2) for y in x], dim=1)
    scanned = selective_scan_over_map(u, dt, a, b, c, skip, (height, width))
    return [y.unflatten(1, (height, width)) for y in scanned.unbind(1)]


class Local(nn.Module):
    """A depthwise 3x3 convolution and SiLU."""

    def __init__(self, channels: int):
        super().__init__()
        self.convolve = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Float[Tensor, "b h w d"]) -> Float[Tensor, "b h w d"]:
        return F.silu(self.convolve(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)


class GatedScan(nn.Module):
    """One task's layers around a scan, D = ratio x width:

        x', z = halves of Linear(LayerNorm(x))
        result = Linear(LayerNorm(scan of SiLU(depthwise convolution of x')) * SiLU(z))

    With ``crossed``, the scanned map and z are the task's own, but the step sizes, B and C are computed from a linear
    map of the features that all tasks share.
    """

    def __init__(self, width: int, ratio: int, states: int, crossed: bool):
        super().__init__()
        inside = ratio * width
        self.norm = nn.LayerNorm(width)
        self.enter = nn.Linear(width, 2 * inside, bias=False)
        self.cross = nn.Linear(width, inside, bias=False) if crossed else None
        self.local = Local(inside)
        self.paths = Paths(inside, states, math.ceil(width / 16))
        self.scanned = nn.LayerNorm(inside)
        self.leave = nn.Linear(inside, width, bias=False)


class GatedScans(nn.Module):
    """x + DropPath(:class:`GatedScan`) for every task: MTMamba's self-task block. With ``crossed`` it is MTMamba++'s
    cross-task block on the semantic level (S-CTM), where the tasks share

        conv3x3(conv1x1(LayerNorm(all tasks' channels)))
    """

    def __init__(self, tasks: Sequence[str], width: int, ratio: int, states: int, drop_path: float,
                 crossed: bool = False):
        super().__init__()
        self.tasks: Any = nn.ModuleDict({task: GatedScan(width, ratio, states, crossed) for task in tasks})
        self.drop_path = DropPath(drop_path)
        self.norm = nn.LayerNorm(len(tasks) * width) if crossed else None
        self.share = nn.Sequential(nn.Conv2d(len(tasks) * width, width, 1),
                                   nn.Conv2d(width, width, 3, padding=1)) if crossed else None

    def forward(self, x: dict[str, Float[Tensor, "b h w c"]]) -> dict[str, Float[Tensor, "b h w c"]]:
        own: Any = self.tasks.values()
        halves = [layers.enter(layers.norm(x[task])).chunk(2, dim=-1) for task, layers in self.tasks.items()]
        inner = [layers.local(half) for layers, (half, _) in zip(own, halves, strict=True)]
        control = inner
        if self.norm is not None and self.share is not None:
            joined = self.norm(torch.cat([x[task] for task in self.tasks], dim=-1))
            shared = self.share(joined.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            control = [layers.cross(shared) for layers in own]
        scanned = scan([layers.paths for layers in own], inner, control)
        return {task: x[task] + self.drop_path(layers.leave(layers.scanned(y) * F.silu(gate)))
                for (task, layers), y, (_, gate) in zip(self.tasks.items(), scanned, halves, strict=True)}


class PlainScan(nn.Module):
    """LayerNorm(scan of SiLU(depthwise convolution of Linear(x)))."""

    def __init__(self, width_in: int, width: int, ratio: int, states: int):
        super().__init__()
        inside = ratio * width
        self.enter = nn.Linear(width_in, inside, bias=False)
        self.local = Local(inside)
        self.paths = Paths(inside, states, math.ceil(width / 16))
        self.scanned = nn.LayerNorm(inside)


class FeatureExchange(nn.Module):
    """MTMamba's cross-task block on the level of features (F-CTM). With z = LayerNorm(x) of a task,

        s = PlainScan(LayerNorm(all tasks' channels))      the same for all tasks
        q = PlainScan(z),  g = sigmoid(Linear(z))          a task's own
        x + DropPath(Linear(g s + (1 - g) q))
    """

    def __init__(self, tasks: Sequence[str], width: int, ratio: int, states: int, drop_path: float):
        super().__init__()
        total, inside = len(tasks) * width, ratio * width
        self.norm, self.shared = nn.LayerNorm(total), PlainScan(total, width, ratio, states)
        self.tasks: Any = nn.ModuleDict({task: nn.ModuleDict({
            "norm": nn.LayerNorm(width), "own": PlainScan(width, width, ratio, states),
            "gate": nn.Linear(width, inside, bias=False), "leave": nn.Linear(inside, width, bias=False)})
            for task in tasks})
        self.drop_path = DropPath(drop_path)

    def forward(self, x: dict[str, Float[Tensor, "b h w c"]]) -> dict[str, Float[Tensor, "b h w c"]]:
        joined = self.norm(torch.cat([x[task] for task in self.tasks], dim=-1))
        z = [layers["norm"](x[task]) for task, layers in self.tasks.items()]
        scans = [self.shared, *(layers["own"] for layers in self.tasks.values())]
        inner = [layers.local(layers.enter(y)) for layers, y in zip(scans, [joined, *z], strict=True)]
        scanned = scan([layers.paths for layers in scans], inner, inner)
        shared, *own = (layers.scanned(y) for layers, y in zip(scans, scanned, strict=True))
        result = {}
        for (task, layers), y, q in zip(self.tasks.items(), z, own, strict=True):
            gate = torch.sigmoid(layers["gate"](y))
            result[task] = x[task] + self.drop_path(layers["leave"](gate * shared + (1 - gate) * q))
        return result
