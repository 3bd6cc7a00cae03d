"""Activation checkpointing: blocks of a network keep only their inputs, and recompute the rest in the backward pass.

Chen et al., 2016, arXiv 1604.06174. The gradients are the same to the last bit: recomputation draws the same random
numbers, and does not update batch statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from polyptych import devices

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def blocks(network: nn.Module) -> list[nn.Module]:
    """The smallest repeated parts of a network (residual blocks, transformer blocks): elements of containers that hold
    several layers with weights, and contain no such element themselves."""
    found: dict[int, nn.Module] = {}
    _look_for_blocks(network, found)
    return [*found.values()]


def _look_for_blocks(module: nn.Module, found: dict[int, nn.Module]) -> bool:
    """Whether ``module`` contains any block; those found are added to ``found``."""
    any_within = False
    for child in module.children():
        within = _look_for_blocks(child, found)
        listed = isinstance(module, CONTAINERS) and not isinstance(child, CONTAINERS[1:])  # a list is never called
        if listed and not within and _layers(child) > 1:
            found[id(child)], within = child, True
        any_within |= within
    return any_within


def _layers(module: nn.Module) -> int:
    return sum(any(p.ndim > 1 for p in part.parameters(recurse=False)) for part in module.modules())


def recompute(network: nn.Module) -> int:
    """Make the blocks of a network recompute; returns how many there are. Parameter names stay the same."""
    there = blocks(network)
    for block in there:
        block.__class__ = _recomputed(type(block))  # type: ignore[arg-type]
    return len(there)


class Recomputed(nn.Module):
    """Mixin of a recomputed block; the other base class has the actual forward pass."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        return checkpoint(super().forward, *args, use_reentrant=False, preserve_rng_state=False,
                          context_fn=partial(_contexts, self), **kwargs)


@cache
def _recomputed(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (Recomputed, kind), {"__module__": kind.__module__})


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts of the first computation, which starts now, and of the second."""
    place = next((x.device for x in (*block.parameters(), *block.buffers())), torch.device("cpu"))
    return nullcontext(), _Again(block, devices.random_states([place]))


class _Again(AbstractContextManager[None]):
    """:func:`_again`, reusable for every backward pass: balancers run one per task."""

    def __init__(self, block: nn.Module, states: Mapping[torch.device, Tensor]):
        self._block, self._states = block, states

    def __enter__(self) -> None:
        self._within = _again(self._block, self._states)
        self._within.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        return self._within.__exit__(*error)


@contextmanager
def _again(block: nn.Module, states: Mapping[torch.device, Tensor]) -> Iterator[None]:
    """Restore the random states of the first computation, and let buffers that a forward pass updates (batch
    statistics) be updated as copies."""
    kept = [(module, name, buffer) for module in block.modules() for name, buffer in module._buffers.items()
            if buffer is not None]
    with devices.same_random(states):
        for device, state in states.items():
            devices.set_random_state(device, state)
        for module, name, buffer in kept:
            module._buffers[name] = buffer.clone()
        try:
            yield
        finally:
            for module, name, buffer in kept:
                module._buffers[name] = buffer
