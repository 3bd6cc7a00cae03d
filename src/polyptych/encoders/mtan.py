"""MTAN: every task attends to the features of one shared network, with soft masks of its own at every stage.

Source: Liu, Johns, Davison, CVPR 2019, arXiv 1803.10704
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.backbones._attention import Trunk, trunk_of
from polyptych.backbones._base import Backbone
from polyptych.encoders._attention import Masks, steps_between
from polyptych.encoders._base import Encoder
from polyptych.types import TaskFeatures


class Mtan(Encoder):
    """With features u (early) and p (late) of every stage l of the shared backbone, task t attends by

        a_{t,l} = sigmoid(h_{t,l}([u_l ; R_{l-1}(a_{t,l-1})])) * p_l

    where h is two 1x1 convolutions and R, the refinement to the channels and the size of the next stage, is the same
    for all tasks. A task's pyramid has the shape of the backbone's and consists of its attended maps a; the refined
    maps R(a) only guide the next masks. If every mask were 1, all tasks would have the features of ``shared``.

    Backbones with a published form use that (SegNet, with attention on the way down and up; the wide residual network,
    whose last attended map is refined once more). All others use the residual form of the survey (Vandenhende et al.,
    TPAMI 2021, arXiv 2004.13379): u enters the last block of a stage and p leaves it, masks are narrow, and R is a
    bottleneck. If a stage cannot be split before its last block, u is p; parallel branches (HRNet) each have their own
    masks; if a network is a single stage, the maps of its pyramid take the place of stages. The survey's heads read the
    last map alone (``--decoder.head aspp``), others can read them all.

    ``shared`` are the maps u and p. R is also shared by all tasks, but comes after this cut: a balancer that works on
    features treats it like the heads.
    """

    def __init__(self, config: Encoder.Config, *, backbone: Backbone.Config, tasks: tuple[str, ...]):
        super().__init__()
        self.backbone = backbone.build()
        self._trunk = (trunk_of(self.backbone),)  # in a tuple, because SegNet is its own trunk and would be saved twice
        self.spec = dict.fromkeys(tasks, self.backbone.spec)
        self.multiple, self.mean, self.std = self.backbone.multiple, self.backbone.mean, self.backbone.std
        attention = self.trunk.attention
        self.steps = steps_between(attention)
        self.masks = nn.ModuleDict({
            task: nn.ModuleList(Masks(point, i == 0, attention.form) for i, point in enumerate(attention.points))
            for task in tasks})

    @property
    def trunk(self) -> Trunk:
        """The backbone, in the form that attention needs."""
        return self._trunk[0]

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> TaskFeatures:
        pairs = []
        shared: dict[int, Tensor] = {}
        for entry, end in self.trunk.attention_maps(image):
            # Views beside the backbone's main path: the gradient by one map must not pass through the next.
            shared |= {id(x): x.view_as(x) for x in (*entry, *end) if id(x) not in shared}
            pairs.append(([shared[id(x)] for x in entry], [shared[id(x)] for x in end]))
        features = {task: self.trunk.attended_features(self._attend(masks, pairs))
                    for task, masks in self.masks.items()}
        return TaskFeatures(features, shared=tuple(shared.values()))

    def _attend(self, masks: nn.Module, pairs: list[tuple[list[Tensor], list[Tensor]]]) -> list[list[Tensor]]:
        """One task's attended maps at every point."""
        attended: list[list[Tensor]] = []
        for number, (mask, (entry, end)) in enumerate(zip(masks.children(), pairs, strict=True)):
            inputs = entry
            if number > 0:
                before = self.steps[number - 1](attended[-1], entry)
                inputs = [torch.cat([x, y], dim=1) for x, y in zip(entry, before, strict=True)]
            attended.append(mask(inputs, end))
        if len(self.steps) == len(attended):  # the backbone needs the last map refined too
            attended[-1] = self.steps[-1](attended[-1], attended[-1])
        return attended
