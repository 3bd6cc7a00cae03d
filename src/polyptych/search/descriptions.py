"""What the nodes of a captured graph remember of their values for the example: shapes, types, plain numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from polyptych.search.traced import SHAPE


def describe(node: fx.Node, value: Any) -> None:
    """Remember on a node what it gives: the shape and type of a tensor, or a plain value."""
    if isinstance(value, Tensor):
        node.meta["shape"], node.meta["dtype"] = tuple(value.shape), value.dtype
    elif isinstance(value, bool | int | float | torch.Size):
        node.meta["value"] = tuple(value) if isinstance(value, torch.Size) else value
    elif isinstance(value, list | tuple):
        node.meta["parts"] = len(value)
        node.meta["holds_tensors"] = any(True for _ in tensors_in(value))


def depends_on_data(node: fx.Node) -> bool:
    """Whether a plain value was read out of a tensor's elements, not of its shape."""
    waiting, seen = [node], set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for below in current.all_input_nodes:
            if "shape" not in below.meta:
                waiting.append(below)
                continue
            name = current.target if current.op == "call_method" else (
                current.args[1] if current.target is getattr else getattr(current.target, "__name__", ""))
            if name not in SHAPE and name != "len":
                return True
    return False


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
