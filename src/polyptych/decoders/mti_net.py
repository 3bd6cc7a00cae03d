"""MTI-Net: at every scale, tasks make predictions and refine each other.

Source: Vandenhende, Georgoulis, Van Gool, ECCV 2020, arXiv 2001.06902
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from polyptych.decoders._base import Decoder
from polyptych.decoders._blocks import Distillation, FusedHead, common_spec, residual, with_a_final_head
from polyptych.tasks._base import resize
from polyptych.types import Auxiliary, Features, FeatureSpec, Output, TaskFeatures


class MTINet(Decoder):
    """Initial predictions at every scale, coarse to fine; between scales, the tasks' features are propagated; at every
    scale, they are distilled through gates (:class:`Distillation`); a head per task combines the scales.

    ``final`` and the finest ``auxiliary`` predictions have the resolution of the finest map, the others that of theirs.
    Features are resized to the next map instead of doubled, so any pyramid works; with a single scale, nothing is
    propagated.

    Differs from the published code (the survey's, SURV; EMA-Net has a copy of it) in the softmax of the feature
    propagation, see ``softmax``; the number of parameters is the same.

    Raises:
        InputError: pyramids of different shapes, a weight that is not positive, or unknown auxiliary tasks, or no task
            left besides them.
    """

    refines = True

    tuned = ("auxiliary_weight", (0.25, 0.5))

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        softmax: Literal["tasks", "published"] = "tasks"
        """Dimension over which the mask of feature propagation sums to one: the tasks, for every channel (the paper),
        or as many consecutive channels of the concatenated features, which mostly belong to one task (the published
        code)."""
        auxiliary_weight: float = 1.0
        """Weight of the losses on the initial predictions at each scale: 1 in the survey's code, 1/4 in EMA-Net's
        copy."""
        auxiliary_tasks: tuple[str, ...] = ()
        """Tasks that only help the others: predicted and supervised at every scale, but not refined. Their final
        prediction is the initial one at the finest scale (with weight 1)."""

        def __post_init__(self) -> None:
            self.require("auxiliary_weight", 0 < self.auxiliary_weight < float("inf"), "a positive number")

    def __init__(self, config: Config, *, features: dict[str, FeatureSpec], channels: dict[str, int]):
        super().__init__()
        refined = with_a_final_head(config.auxiliary_tasks, channels)
        spec = common_spec(features, "mti_net")
        self.auxiliary_weight = config.auxiliary_weight
        self.initial = ScaleByScale(spec, channels, config.softmax)
        # The gate depends on the sender: in MTI-Net this is the paper's form (equation 1), not a deviation of the code.
        self.distill = nn.ModuleList(Distillation(refined, tuple(channels), c, gate="source") for c in spec.channels)
        self.heads = nn.ModuleDict({task: FusedHead(spec, channels[task]) for task in refined})

    def forward(self, features: TaskFeatures) -> Output:
        scales, predictions = self.initial(features)
        distilled = [distill(scale) for distill, scale in zip(self.distill, scales, strict=True)]
        final = dict(predictions[0])
        for task, head in self.heads.items():
            final[task] = head(FusedHead.gather(Features(tuple(scale[task] for scale in distilled))))
        finest = {task: predictions[0][task] for task in self.heads}  # already final for auxiliary tasks
        return Output(final, [Auxiliary(extra, self.auxiliary_weight) for extra in (finest, *predictions[1:])])


class ScaleByScale(nn.Module):
    """MTI-Net before distillation: every task's features and prediction at every scale, coarse to fine.

    The features of a scale are computed from the backbone's map and the features propagated from the next coarser
    scale:

        F_{s,t} = two residual blocks of concat(x_s, up(P_{s+1,t}))        at the coarsest scale of x_s alone
        P_s     = FeaturePropagation(F_s)
        prediction_{s,t} = 1x1 convolution of F_{s,t}
    """

    def __init__(self, spec: FeatureSpec, channels: dict[str, int], softmax: Literal["tasks", "published"] = "tasks"):
        super().__init__()
        coarser = (*spec.channels[1:], 0)
        # Any: type checkers do not know what a container of containers holds.
        self.refine: Any = nn.ModuleList(nn.ModuleDict({task: nn.Sequential(
            residual(BasicBlock, own + below, own), residual(BasicBlock, own, own)) for task in channels})
            for own, below in zip(spec.channels, coarser, strict=True))
        self.predict: Any = nn.ModuleList(nn.ModuleDict({task: nn.Conv2d(own, c, 1) for task, c in channels.items()})
                                          for own in spec.channels)
        self.propagate = nn.ModuleList(FeaturePropagation(tuple(channels), c, softmax) for c in spec.channels[1:])

    def forward(self, features: TaskFeatures) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
        """Features and predictions by task, for every scale, fine to coarse."""
        scales: list[dict[str, Tensor]] = []
        for s in reversed(range(len(self.refine))):
            maps = {task: features[task].maps[s] for task in self.refine[s]}
            if scales:
                below = self.propagate[s](scales[0])
                maps = {task: torch.cat([x, resize(below[task], (x.shape[-2], x.shape[-1]))], dim=1)
                        for task, x in maps.items()}
            scales.insert(0, {task: refine(maps[task]) for task, refine in self.refine[s].items()})
        return scales, [{task: predict(scale[task]) for task, predict in heads.items()}
                        for heads, scale in zip(self.predict, scales, strict=True)]


class FeaturePropagation(nn.Module):
    """The features that a scale passes to the next finer one. A small network computes masks from the features of all
    tasks; the masked features are combined, reweighted per task by squeeze-and-excitation, and added to the task's own
    features."""

    def __init__(self, tasks: tuple[str, ...], width: int, softmax: Literal["tasks", "published"]):
        super().__init__()
        total, inner = len(tasks) * width, max(1, len(tasks) * width // 4)
        self.shape = (len(tasks), width) if softmax == "tasks" else (width, len(tasks))
        self.mask_axis = 1 if softmax == "tasks" else 2
        self.mask = nn.Sequential(residual(BasicBlock, total, inner), residual(BasicBlock, inner, inner),
                                  nn.Conv2d(inner, total, 1))
        self.join = residual(BasicBlock, total, width)
        self.excite = nn.ModuleDict({task: squeeze_and_excitation(width) for task in tasks})

    def forward(self, features: dict[str, Float[Tensor, "b c h w"]]) -> dict[str, Float[Tensor, "b c h w"]]:
        stacked = torch.cat([features[task] for task in self.excite], dim=1)
        mask = self.mask(stacked).unflatten(1, self.shape).softmax(self.mask_axis).flatten(1, 2)
        shared = self.join(mask * stacked)
        return {task: excite(shared) * shared + features[task] for task, excite in self.excite.items()}


def squeeze_and_excitation(width: int, reduction: int = 16) -> nn.Sequential:
    """One factor in (0, 1) per channel, from the mean over the image. Hu, Shen, Sun, CVPR 2018, arXiv 1709.01507."""
    inner = max(1, width // reduction)
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, inner, 1), nn.ReLU(inplace=True),
                         nn.Conv2d(inner, width, 1), nn.Sigmoid())
