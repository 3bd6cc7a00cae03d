"""Where tasks can attend to a backbone: what MTAN needs to know of it.

A backbone of its own design says so itself (SegNet attends in encoder and decoder); any other one gets
:class:`StageTrunk`, one point per stage.
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
    """A place where tasks attend; one number per map where branches run in parallel.

    Attributes:
        entry: channels of the features that a mask is computed from.
        exit: channels of the features that a mask multiplies, which have the same size.
        strides: of both.
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
        points: in the order of the trunk.
        form: of masks and of the refinement between points (:mod:`polyptych.encoders._attention`).
        finish: the last attended map is refined too.
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
        """What masks are computed from and what they multiply, at every point; the backbone runs once."""

    def attended_features(self, attended: list[list[Tensor]]) -> Features:
        """A task's pyramid from what it attended to, one list of maps per point. With every mask at 1 it is the
        backbone's own, where nothing is refined at the end."""


def trunk_of(backbone: Backbone) -> Trunk:
    """The backbone itself where it knows how to be attended to, else its stages."""
    return cast(Trunk, backbone) if isinstance(backbone, Trunk) else StageTrunk(backbone)


class StageTrunk:
    """One point for every stage but the stem: masks are computed from what enters its last block (from its output,
    where the stage does not come apart) and multiply its output. A backbone that cannot be cut, whose only state is
    the list of its maps, has a point for each of them instead.

    Not a module: the backbone stays one, with its stages cut in place.
    """

    def __init__(self, backbone: Backbone):
        self.backbone = backbone
        self.first = int(backbone.has_stem)
        image, *states = probe(backbone)
        self.separate = len(backbone.stages) == 1 and len(maps_of(states[0])) > 1
        training = backbone.training
        backbone.eval()
        self.halved = set() if self.separate else self._halve([image, *states[:-1]])
        # From here on only the structure of the states is needed, to put attended maps into it.
        self.states = [with_maps(state, [x.new_empty(0) for x in maps_of(state)]) for state in states]
        with torch.no_grad():
            pairs = self.attention_maps(image)
        backbone.train(training)
        self.attention = Attention(tuple(
            Point(_channels(entry), _channels(end), tuple(round(image.shape[-1] / x.shape[-1]) for x in end))
            for entry, end in pairs))

    def _halve(self, states: list[Any]) -> set[int]:
        """Cut the stages in place, given the state that enters each; returns which of them came apart."""
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
                entry = self.backbone.grids(state)  # before HRNet's last module writes into the list of its branches
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
