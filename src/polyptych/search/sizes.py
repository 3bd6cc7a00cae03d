"""Which plain numbers in a captured graph depend on the size or the number of images: found by running it on others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from polyptych.search.pure import require


@torch.no_grad()
def replay(graph: fx.Graph, root: nn.Module, constants: Mapping[str, Tensor], image: Tensor,
           shapes: dict[fx.Node, Any] | None = None) -> tuple[Tensor, ...]:
    """Run a graph node by node.

    Args:
        shapes: takes the shape of each tensor (None for other values); checks are then left out, so that a graph can
            be tried on a size that it was not made for.
    """
    values: dict[fx.Node, Any] = {}
    readers = {node: len(node.users) for node in graph.nodes}
    for node in graph.nodes:
        if node.op == "output":
            return fx.node.map_arg(node.args[0], values.__getitem__)
        if node.op == "placeholder":
            value: Any = image
        elif node.op == "get_attr":
            value = constants[str(node.target)] if node.target in constants else look_up(root, str(node.target))
        elif node.target is require and shapes is not None:
            value = None
        else:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "call_module":
                value = root.get_submodule(str(node.target))(*args, **kwargs)
            elif node.op == "call_method":
                value = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                value = node.target(*args, **kwargs)
        values[node] = value
        if shapes is not None:
            shapes[node] = tuple(value.shape) if isinstance(value, Tensor) else None
        for below in node.all_input_nodes:
            readers[below] -= 1
            if not readers[below]:
                del values[below]
    raise AssertionError("a graph without output")


def look_up(root: nn.Module, path: str) -> Any:
    """A parameter or buffer by its dotted path."""
    place, _, name = path.rpartition(".")
    return getattr(root.get_submodule(place), name)


def depends_on_size(graph: fx.Graph, shapes: Mapping[fx.Node, Any]) -> set[fx.Node]:
    """The nodes of plain values that depend on the size or the number of images.

    Args:
        shapes: of the tensors for another image. A dimension that differs from that of the example depends on it.
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
    """Whether it depends on the size how many tensors a node gives."""
    name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
    rest = dict(zip(("sizes", "dim"), node.args[1:], strict=False)) | node.kwargs  # how many, or how large; where
    along = rest.get("sizes" if name == "unbind" else "dim", rest.get("dim", 0))
    flags = varying[node.all_input_nodes[0]]
    if name in ("split", "split_with_sizes", "unbind") and isinstance(along, int):
        given = name != "unbind" and any(isinstance(x, list | tuple) for x in rest.values())
        return not given and flags[along]
    return name not in ("chunk", "tensor_split") and any(any(varying[below]) for below in node.all_input_nodes)
