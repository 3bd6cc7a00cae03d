"""What the nodes of a captured graph store about their values for the example (shapes, types, plain numbers), and which
plain numbers depend on the size or number of images, found by running the graph on other images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from polyptych.search.capture.traced_values import SHAPE


def describe(node: fx.Node, value: Any) -> None:
    """Store on a node what it returns: the shape and type of a tensor, or a plain value."""
    if isinstance(value, Tensor):
        node.meta["shape"], node.meta["dtype"] = tuple(value.shape), value.dtype
    elif isinstance(value, bool | int | float | torch.Size):
        node.meta["value"] = tuple(value) if isinstance(value, torch.Size) else value
    elif isinstance(value, list | tuple):
        node.meta["parts"] = len(value)
        node.meta["holds_tensors"] = any(True for _ in tensors_in(value))


def record(graph: fx.Graph, runs: Sequence[Mapping[fx.Node, Any]]) -> None:
    """Store on every node its shape or plain value for images of several sizes and numbers.

    Args:
        runs: the results of the nodes in each run: shapes of tensors, other values as they are.
    """
    for node in graph.nodes:
        if node.op == "output":
            continue
        values = [run[node] for run in runs]
        node.meta["kind"] = type(values[0])
        if "shape" in node.meta or all(_is_plain(value) for value in values):
            node.meta["record"] = tuple(tuple(value) if isinstance(value, list | tuple) else value for value in values)


def recorded(node: fx.Node) -> Any:
    """The values of a node for all recorded images, equal for nodes that can replace each other; None without a
    record."""
    seen = node.meta.get("record")
    return None if seen is None else ("shape" in node.meta, node.meta.get("dtype"), seen)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(isinstance(part, int) for part in value)
    return isinstance(value, int | float)


def depends_on_data(node: fx.Node) -> bool:
    """Whether a plain value comes from a tensor's elements rather than its shape."""
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


def carries_tensors(node: fx.Node) -> bool:
    """Whether a node returns a tensor or a collection of tensors."""
    return "shape" in node.meta or bool(node.meta.get("holds_tensors"))


def depends_on_size(graph: fx.Graph, shapes: Mapping[fx.Node, Any]) -> set[fx.Node]:
    """The nodes whose plain values depend on the size or number of images.

    Args:
        shapes: shapes of the tensors for another image; a dimension that differs from the example's depends on it.
    """
    varying: dict[fx.Node, tuple[bool, ...]] = {}  # by dimension; a plain value has one entry, a shape one for each
    for node in graph.nodes:
        if "shape" in node.meta:
            own, other = node.meta["shape"], shapes.get(node)
            varying[node] = tuple(a != b for a, b in zip(own, other, strict=True)) if (
                other is not None and len(own) == len(other)) else (other is not None,) * len(own)
            continue
        inputs = [varying[below] for below in node.all_input_nodes]
        whole = (any(any(flags) for flags in inputs),)
        if node.op == "call_method" and node.target == "size" and inputs:
            at = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
            varying[node] = inputs[0] if at is None else (inputs[0][at],) if isinstance(at, int) else whole
        elif node.op == "call_function" and node.target is getattr and node.args[1] == "shape":
            varying[node] = inputs[0]
        elif node.op == "call_function" and node.target is len and "parts" in node.args[0].meta:
            varying[node] = (_varies_in_number(node.args[0], varying),)
        elif node.op == "call_function" and node.target is getattr and "shape" in node.args[0].meta:
            varying[node] = (False,)  # type, device, ...
        elif getattr(node.target, "__name__", "") == "getitem" and len(inputs) == 1 and isinstance(
                node.args[1], int | slice):
            chosen = inputs[0][node.args[1]] if len(inputs[0]) > 1 else whole
            varying[node] = chosen if isinstance(chosen, tuple) else (chosen,)
        else:
            varying[node] = whole
    return {node for node, flags in varying.items() if any(flags) and "shape" not in node.meta}


def _varies_in_number(node: fx.Node, varying: Mapping[fx.Node, tuple[bool, ...]]) -> bool:
    """Whether the number of tensors that a node returns depends on the size."""
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    rest = dict(zip(("sizes", "dim"), node.args[1:], strict=False)) | node.kwargs  # number or sizes; dimension
    along = rest.get("sizes" if name == "unbind" else "dim", rest.get("dim", 0))
    flags = varying[node.all_input_nodes[0]]
    if name in ("split", "split_with_sizes", "unbind") and isinstance(along, int):
        given = name != "unbind" and any(isinstance(x, list | tuple) for x in rest.values())
        return not given and flags[along]
    return name not in ("chunk", "tensor_split") and any(any(varying[below]) for below in node.all_input_nodes)
