"""JTRL: tasks take turns, from coarse to fine, each using the others' latest predictions.

Source: Zhang, Cui, Xu, Jie, Li, Yang, ECCV 2018 (Joint Task-Recursive Learning for Semantic Segmentation and Depth)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from polyptych.decoders._base import Decoder
from polyptych.decoders._blocks import common_spec, convolution, residual
from polyptych.ops.winograd import Convolution3x3
from polyptych.tasks._base import resize
from polyptych.types import Auxiliary, FeatureSpec, Output, TaskFeatures


class JTRL(Decoder):
    """One sequence of states, for every scale from coarse to fine and every task in the order of the run:

        u_{s,t} = the task's state at the coarser scale, upsampled, with the backbone's map x_s
        h_{s,t} = TaskAttention(h_{s,1} ... h_{s,t-1}, u_{s,t}, u_{s,t+1} ...)

    So a task sees the updated states of the tasks before it, and the coarser states of those after it. At the
    coarsest scale u is a 1x1 convolution of x_s, at the others a residual block of concat(up(h_{s+1,t}), x_s). Every
    state is a prediction: the finest is ``final``, the others are auxiliary, at the resolution of their scale.

    There is no public code; this was written from memory of the paper and from its description in later work. From the
    paper: two tasks (depth first) that alternate over four scales, upsampling residual blocks, the steps of
    :class:`TaskAttention`, and a loss at every scale. Ours: any number of tasks and scales; the finest scale is that of
    the pyramid (theirs is 1/2); the backbone's map enters at every scale, because fine maps would otherwise be unused;
    one width at all scales; and every task's usual loss instead of berHu for depth.

    Raises:
        InputError: pyramids of different shapes, or a width below one.
    """

    refines = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Decoder.Config):
        width: int = 64
        """Channels of the hidden state."""

        def __post_init__(self) -> None:
            self.require("width", self.width >= 1, "1 or more")

    def __init__(self, config: Config, *, features: dict[str, FeatureSpec], channels: dict[str, int]):
        super().__init__()
        spec, width = common_spec(features, "jtrl"), config.width
        *finer, coarsest = spec.channels
        # Any: type checkers do not know what a container of containers holds.
        self.enter: Any = nn.ModuleList([
            *(nn.ModuleDict({task: residual(BasicBlock, width + c, width) for task in channels}) for c in finer),
            nn.ModuleDict({task: convolution(coarsest, width, 1) for task in channels})])
        self.attend: Any = nn.ModuleList(
            nn.ModuleDict({task: TaskAttention(len(channels), width) for task in channels}) for _ in spec.channels)
        self.predict: Any = nn.ModuleList(
            nn.ModuleDict({task: nn.Conv2d(width, c, 1) for task, c in channels.items()}) for _ in spec.channels)

    def forward(self, features: TaskFeatures) -> Output:
        states: dict[str, Tensor] = {}
        predictions = []
        for s in reversed(range(len(self.enter))):
            states = self.enlarge(states, {task: features[task].maps[s] for task in self.enter[s]}, s)
            for task, attend in self.attend[s].items():
                states[task] = attend(torch.stack(list(states.values()), dim=1))
            predictions.append({task: predict(states[task]) for task, predict in self.predict[s].items()})
        *coarser, final = predictions
        return Output(final, [Auxiliary(prediction) for prediction in coarser])

    def enlarge(self, states: dict[str, Tensor], maps: dict[str, Tensor], s: int) -> dict[str, Tensor]:
        """States of the coarser scale (none at the coarsest) at the next one, joined with the backbone's maps."""
        joined = maps if not states else {
            task: torch.cat([resize(states[task], (x.shape[-2], x.shape[-1])), x], dim=1) for task, x in maps.items()}
        return {task: enter(joined[task]) for task, enter in self.enter[s].items()}


class TaskAttention(nn.Module):
    """The paper's task-attentional module, generalized from two tasks to any number. With states f_1 ... f_T:

        B = softmax over tasks of conv(concat f)          balance; of two tasks it is sigmoid and 1 - sigmoid, as there
        M = sigmoid(hourglass(conv(concat B_k . f_k)))    attention, one map for every channel
        h = conv(concat (1 + M) . f_k)

    The hourglass halves the resolution twice and restores it. It upsamples bilinearly, which works for any size,
    instead of by deconvolution as in the paper, and has no normalization, because its smallest map may be a single
    position.
    """

    def __init__(self, tasks: int, width: int):
        super().__init__()
        self.balance = Convolution3x3(tasks * width, tasks * width)
        self.join = convolution(tasks * width, width, 3)
        self.down = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(2))
        self.up = nn.ModuleList(Convolution3x3(width, width) for _ in range(2))
        self.merge = convolution(tasks * width, width, 3)

    def forward(self, states: Float[Tensor, "b t c h w"]) -> Float[Tensor, "b c h w"]:
        stacked = states.flatten(1, 2)
        balance = self.balance(stacked).view_as(states).softmax(dim=1)
        attention = torch.sigmoid(self.hourglass(self.join((balance * states).flatten(1, 2))))
        return self.merge(((1 + attention)[:, None] * states).flatten(1, 2))

    def hourglass(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        sizes = []
        for down in self.down:
            sizes.append((x.shape[-2], x.shape[-1]))
            x = F.relu(down(x))
        first, last = self.up
        return last(resize(F.relu(first(resize(x, sizes[1]))), sizes[0]))
