"""The points at which tasks can attend to a backbone, for MTAN.

A backbone may define its own points (SegNet attends in encoder and decoder); any other one gets :class:`StageTrunk`,
with one point per stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.backbones._base import Backbone
from polyptych.backbones._halves import halve
from polyptych.backbones._states import maps_of, probe, with_maps
from polyptych.types import Features


@dataclass(frozen=True)
class Point:
    """A place where tasks attend; one number per map, because branches may run in parallel.

    Attributes:
        entry: channels of the features that a mask is computed from.
        exit: channels of the features that the mask multiplies, which have the same size.
        strides: strides of both.
        bottom: a coarser stride that the trunk passes through before the next point, if there is one.
    """

    entry: tuple[int, ...]
    exit: tuple[int, ...]
    strides: tuple[int, ...]
    bottom: int = 0


@dataclass(frozen=True)
class Attention:
    """How tasks attend.

    Attributes:
        points: points in the order of the trunk.
        form: form of masks and of the refinement between points (:mod:`polyptych.encoders._attention`).
        finish: whether the last attended map is refined too.
    """

    points: tuple[Point, ...]
    form: Literal["residual", "plain"] = "residual"
    finish: bool = False


Taken = tuple[list[Tensor], list[Tensor]]


@runtime_checkable
class Trunk(Protocol):
    """What MTAN needs of a backbone."""

    attention: Attention

    def attention_maps(self, image: Float[Tensor, "b 3 h w"]) -> list[Taken]:
        """Run the backbone once, and return for every point the maps that masks are computed from and those that they
        multiply."""

    def attended_features(self, attended: list[list[Tensor]]) -> Features:
        """A task's pyramid from its attended maps, one list per point. If every mask is 1 and nothing is refined at the
        end, it equals the backbone's own."""


def trunk_of(backbone: Backbone) -> Trunk:
    """The backbone itself if it defines points, else its stages."""
    return cast(Trunk, backbone) if isinstance(backbone, Trunk) else StageTrunk(backbone)


class StageTrunk:
    """One point for every stage except the stem: masks are computed from the input of its last block (from its output,
    if the stage cannot be split) and multiply its output. A backbone that cannot be cut, whose only state is the list
    of its maps, has a point for each map instead.

    Not a module itself: the backbone remains the module, with its stages split in place.
    """

    def __init__(self, backbone: Backbone):
        self.backbone = backbone
        self.first = int(backbone.has_stem)
        image, *states = probe(backbone)
        self.separate = len(backbone.stages) == 1 and len(maps_of(states[0])) > 1
        training = backbone.training
        backbone.eval()
        self.halved = set() if self.separate else self._halve([image, *states[:-1]])
        # From here on, only the structure of the states is needed, to fill in attended maps.
        self.states = [with_maps(state, [x.new_empty(0) for x in maps_of(state)]) for state in states]
        with torch.no_grad():
            pairs = self.attention_maps(image)
        backbone.train(training)
        self.attention = Attention(tuple(
            Point(_channels(entry), _channels(end), tuple(round(image.shape[-1] / x.shape[-1]) for x in end))
            for entry, end in pairs))

    def _halve(self, states: list[Any]) -> set[int]:
        """Split the stages in place, given the input state of each; returns the indices of those that could be
        split."""
        halved = set()
        for number in range(self.first, len(states)):
            if (halves := halve(self.backbone.stages[number], states[number])) is not None:
                self.backbone.stages[number] = halves
                halved.add(number)
        return halved

    def attention_maps(self, image: Float[Tensor, "b 3 h w"]) -> list[Taken]:
        pairs: list[Taken] = []
        state: Any = image
        stages: Any = self.backbone.stages
        for number, stage in enumerate(stages):
            if number in self.halved:
                state = stage[0](state)
                entry = self.backbone.grids(state)  # read before HRNet's last module overwrites the list of branches
                state = stage[1](state)
                pairs.append((entry, self.backbone.grids(state)))
            else:
                state = stage(state)
                if number >= self.first:
                    pairs.append((self.backbone.grids(state), self.backbone.grids(state)))
        return [([x], [x]) for x in pairs[0][1]] if self.separate else pairs

    def attended_features(self, attended: list[list[Tensor]]) -> Features:
        states = list(self.states)
        if self.separate:
            attended = [[x for maps in attended for x in maps]]
        for number, maps in enumerate(attended, start=self.first):
            states[number] = with_maps(states[number], maps)
        return self.backbone.features(states)


def _channels(maps: list[Tensor]) -> tuple[int, ...]:
    return tuple(int(x.shape[1]) for x in maps)
