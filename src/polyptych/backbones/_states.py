"""States between the stages of a backbone, whatever their structure: tensors, and tuples and lists of them.

A *map* is a floating-point tensor (b c h w) of a state. Units that mix features of several networks act on maps only;
integer tensors (unpooling indices) stay with the network that made them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

PROBE = 64  # minimum size in pixels, so that the coarsest map is usually not a single value


def maps_of(state: Any) -> list[Tensor]:
    """The maps of a state, in order."""
    if isinstance(state, Tensor):
        return [state] if state.is_floating_point() else []
    if isinstance(state, list | tuple):
        return [x for part in state for x in maps_of(part)]
    return []


def with_maps(state: Any, maps: Sequence[Tensor]) -> Any:
    """The state with its first maps replaced."""
    return _replace(state, iter(maps))


def _replace(state: Any, maps: Iterator[Tensor]) -> Any:
    if isinstance(state, Tensor):
        return next(maps, state) if state.is_floating_point() else state
    if isinstance(state, list | tuple):
        parts = [_replace(part, maps) for part in state]
        # A named tuple takes its elements as separate arguments.
        return type(state)(*parts) if hasattr(state, "_fields") else type(state)(parts)
    return state


def branch_off(state: Any) -> Any:
    """The same values as views: a gradient with respect to these maps does not include the path through later
    stages."""
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
