"""Dense sharing: a shared network, and a network per task that sees the shared features at every stage.

Source: the baseline "Dense" of MTAN (Liu, Johns, Davison, CVPR 2019, arXiv 1803.10704)
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.backbones._base import Backbone
from polyptych.backbones._states import branch_off, maps_of, probe, with_maps
from polyptych.encoders._base import Encoder
from polyptych.types import TaskFeatures


class Dense(Encoder):
    """Every stage of a task's network except the first takes the concatenation of the task's state and the shared one.
    Nothing flows back into the shared network, which makes no predictions of its own.

    SegNet has wider stages for this (its published form; each network unpools with its own indices). For any other
    backbone, a 1x1 convolution reduces the concatenation to the channels that the stage expects; it is initialized to
    the mean of the two, which keeps pretrained stages useful. A backbone with a single stage shares its output maps.
    The last stage of the shared network would have no effect and is not built (MTAN's code has it).

    ``shared`` are the maps that the task networks read.
    """

    def __init__(self, config: Encoder.Config, *, backbone: Backbone.Config, tasks: tuple[str, ...]):
        super().__init__()
        shared: Any = backbone.build()
        own: list[Any] = [backbone.build() for _ in tasks]
        self.spec = dict.fromkeys(tasks, shared.spec)
        self.multiple, self.mean, self.std = shared.multiple, shared.mean, shared.std
        # Only the stages: what the backbone has after them is not needed.
        self.shared_stages = nn.ModuleList(list(shared.stages)[:max(1, len(shared.stages) - 1)])
        self.backbones: Any = nn.ModuleDict(dict(zip(tasks, own, strict=True)))
        self.takes_pairs = hasattr(shared, "double_inputs")
        self.fusions: Any = nn.ModuleDict()
        if self.takes_pairs:
            for each in own:
                each.double_inputs()
            return
        _, *states = probe(shared)
        for task in tasks:
            self.fusions[task] = nn.ModuleList(nn.ModuleList(Fusion(int(x.shape[1])) for x in maps_of(state))
                                               for state in states[:len(self.shared_stages)])

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> TaskFeatures:
        state: Any = image
        common = []
        for stage in self.shared_stages:
            state = stage(state)
            common.append(branch_off(state))
        return TaskFeatures({task: own.features(self._run(task, own, image, common))
                             for task, own in self.backbones.items()},
                            shared=tuple(x for state in common for x in maps_of(state)))

    def _run(self, task: str, own: Any, image: Tensor, common: list[Any]) -> list[Any]:
        """The states of a task's network."""
        states: list[Any] = []
        state: Any = image
        for number, stage in enumerate(own.stages):
            if self.takes_pairs:
                state = stage((state, common[number - 1]) if number else state)
            else:
                state = stage(state)
                if number < len(common):
                    state = fuse(self.fusions[task][number], state, common[number])
            states.append(state)
        return states


def fuse(fusions: nn.ModuleList, state: Any, common: Any) -> Any:
    """The state with each of its maps fused with the shared one."""
    return with_maps(state, [fusion(x, y) for fusion, x, y
                             in zip(fusions, maps_of(state), maps_of(common), strict=True)])


class Fusion(nn.Module):
    """A 1x1 convolution of two maps, without bias, initialized to their mean."""

    def __init__(self, channels: int):
        super().__init__()
        self.mix = nn.Conv2d(2 * channels, channels, 1, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(torch.eye(channels).repeat(1, 2)[..., None, None] / 2)

    def forward(self, x: Float[Tensor, "b c h w"], y: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.mix(torch.cat([x, y], dim=1))
