"""PAP-Net: every task's features diffuse along affinities that combine those of all tasks.

Source: Zhang, Cui, Xu, Yan, Sebe, Yang, CVPR 2019, arXiv 1906.03525
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.decoders._base import Decoder
from polyptych.decoders._blocks import BottleneckHead, Fusion, common_spec, for_each_pyramid
from polyptych.ops.affinity import affinity_diffusion
from polyptych.types import Auxiliary, FeatureSpec, Output, TaskFeatures


class PAPNet(Decoder):
    """Pattern-affinitive propagation: an initial head per task on the fused pyramid; a 1x1 convolution of its features
    to X_t; affinities between all positions for every task, mixed with weights that each task learns; diffusion of X_t
    along the mixture; a final head. All at the resolution of the finest map. With task s's affinity A_s, whose rows sum
    to one, task t has

        X_t <- strength (sum_s softmax(w_t)_s A_s) X_t + (1 - strength) X_t(0)        ``steps`` times

    A_s is never stored, see :func:`polyptych.ops.affinity.affinity_diffusion`. Its entries are (1 + cosine) / 2 of the
    features at two positions, divided by the row sum. They are nonnegative, so that each row is a weighted average.

    Layers, strength and steps are those of EMA-Net's code, the only public one (the paper has a ResNet-50, deconvolves
    to full resolution, and computes affinities on a coarser grid). Its errors are reproduced by
    ``normalization="published"``. The number of parameters is the same. Neither has the paper's third loss, on the
    affinity of sampled pairs of pixels.

    Raises:
        InputError: pyramids of different shapes, a width that is not a multiple of 4, fewer than one step, or a
            strength outside [0, 1].
    """

    refines = True
    undecayed = ("mixture",)  # logits of a softmax: decay would pull the mixture toward a plain mean

    tuned = ("strength", (0.2, 0.01))

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        normalization: Literal["rows", "published"] = "rows"
        """Scale features to unit length at every position and affinity rows to sum to one; or, as in the published
        code, scale every channel to unit length over all positions and divide affinities by their column sums, which
        may be close to zero."""
        steps: int = 1
        """Number of diffusion steps."""
        strength: float = 0.05
        """Weight of the diffused features after each step; the rest is the features before diffusion."""
        width: int = 128
        """Channels of the features that are compared and diffused; must be a multiple of 4."""
        initial_width: int = 256
        """Channels of the initial heads' features; must be a multiple of 4."""

        def __post_init__(self) -> None:
            do = "choose such a value"
            for field in ("width", "initial_width"):
                self.require(field, getattr(self, field) >= 4 and getattr(self, field) % 4 == 0,
                             "a positive multiple of 4", do)
            self.require("steps", self.steps >= 1, "1 or more", do)
            self.require("strength", 0 <= self.strength <= 1, "a share from 0 to 1", do)

    def __init__(self, config: Config, *, features: dict[str, FeatureSpec], channels: dict[str, int]):
        super().__init__()
        self.config = config
        self.fuse = Fusion(common_spec(features, "pap_net"))
        self.initial = nn.ModuleDict({task: BottleneckHead(self.fuse.channels, config.initial_width, c)
                                      for task, c in channels.items()})
        self.project = nn.ModuleDict({task: nn.Conv2d(config.initial_width, config.width, 1)
                                      for task in channels})
        self.mixture = nn.Parameter(torch.zeros(len(channels), len(channels)))  # [target, source]; all alike at first
        self.heads = nn.ModuleDict({task: BottleneckHead(config.width, config.width, c)
                                    for task, c in channels.items()})

    def forward(self, features: TaskFeatures) -> Output:
        fused = for_each_pyramid(self.fuse, features)
        initial = {task: head(fused[task]) for task, head in self.initial.items()}
        projected = torch.stack([project(initial[task][0]) for task, project in self.project.items()], dim=1)
        diffused = [self.diffuse(projected, target) for target in range(len(self.heads))]
        final = {task: head(x)[1] for (task, head), x in zip(self.heads.items(), diffused, strict=True)}
        return Output(final, [Auxiliary({task: prediction for task, (_, prediction) in initial.items()})])

    def diffuse(self, projected: Float[Tensor, "b t c h w"], target: int) -> Float[Tensor, "b c h w"]:
        """One task's features after diffusion, in float32 at least, because of the sums over all positions."""
        with torch.autocast(projected.device.type, enabled=False):
            projected = projected.to(torch.promote_types(projected.dtype, torch.float32))
            start = state = projected[:, target]
            weights = self.mixture[target].softmax(0).to(projected.dtype)
            step = affinity_diffusion if self.config.normalization == "rows" else published_diffusion
            for _ in range(self.config.steps):
                state = torch.lerp(start, step(projected, state, weights=weights), self.config.strength)
            return state


def published_diffusion(features: Float[Tensor, "b s c h w"], values: Float[Tensor, "b d h w"], *,
                        weights: Float[Tensor, " s"]) -> Float[Tensor, "b d h w"]:
    """What EMA-Net's code computes, in linear time: with the channels of F_s scaled to unit length over all N
    positions, A_s = F_s F_s^T and c_s its column sums,

        sum_s weights_s A_s diag(1 / c_s) X = sum_s weights_s F_s (F_s^T (X / c_s))

    As in that code, column sums may be close to zero.
    """
    basis = F.normalize(features.flatten(3), dim=3)
    sums = torch.einsum("bscn,bsc->bsn", basis, basis.sum(3))
    scaled = values.flatten(2)[:, None] / sums[:, :, None]
    gathered = torch.einsum("bscn,bsdn->bscd", basis, scaled)
    return torch.einsum("s,bscn,bscd->bdn", weights, basis, gathered).view_as(values)
