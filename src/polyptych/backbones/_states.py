"""States between the stages of a backbone, whatever their structure: tensors, and tuples and lists of them.

A *map* is a floating-point tensor (b c h w) of a state. What mixes the features of several networks acts on maps alone;
whole numbers (the indices of unpooling) stay with the network that made them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

PROBE = 64  # no less than this many pixels, so that the coarsest of usual maps is not a single value


def maps_of(state: Any) -> list[Tensor]:
    """The maps of a state, in its order."""
    if isinstance(state, Tensor):
        return [state] if state.is_floating_point() else []
    if isinstance(state, list | tuple):
        return [x for part in state for x in maps_of(part)]
    return []


def with_maps(state: Any, maps: Sequence[Tensor]) -> Any:
    """The same state with other maps in the places of its first ones."""
    return _replace(state, iter(maps))


def _replace(state: Any, maps: Iterator[Tensor]) -> Any:
    if isinstance(state, Tensor):
        return next(maps, state) if state.is_floating_point() else state
    if isinstance(state, list | tuple):
        parts = [_replace(part, maps) for part in state]
        # A named tuple takes its parts one by one.
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state


def branch_off(state: Any) -> Any:
    """The same values on a way of their own: a gradient by these maps does not run on through later stages."""
    return with_maps(state, [x.view_as(x) for x in maps_of(state)])


@torch.no_grad()
def probe(backbone: Any) -> list[Any]:
    """A small random image and the state after each stage, to learn the number and the channels of its maps. Leaves the
    backbone, and torch's random numbers, as they were."""
    training = backbone.training
    backbone.eval()
    size = backbone.multiple * math.ceil(PROBE / backbone.multiple)
    reference = next(backbone.parameters())
    image = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(reference)
    states = backbone.run(image)
    backbone.train(training)
    return [image, *states]
