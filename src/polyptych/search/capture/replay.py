"""Running a captured graph node by node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from polyptych.search.capture.graph_functions import require


def replay(graph: fx.Graph, root: nn.Module, constants: Mapping[str, Tensor], image: Tensor,
           shapes: dict[fx.Node, Any] | None = None, plain: dict[fx.Node, Any] | None = None,
           gradients: bool = False) -> tuple[Tensor, ...]:
    """Run a graph node by node, by default without gradients.

    Args:
        shapes: if given, receives the shape of each tensor (None for other values); the run then skips checks, so that
            it can try a size that the graph was not made for.
        plain: if given, receives the shape of each tensor, and every other value as it is.
    """
    with torch.set_grad_enabled(gradients):
        return _replay(graph, root, constants, image, shapes, plain)


def _replay(graph: fx.Graph, root: nn.Module, constants: Mapping[str, Tensor], image: Tensor,
            shapes: dict[fx.Node, Any] | None, plain: dict[fx.Node, Any] | None) -> tuple[Tensor, ...]:
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
            function, args, kwargs = call_of(node, values.__getitem__, root.get_submodule)
            value = function(*args, **kwargs)
        values[node] = value
        if shapes is not None:
            shapes[node] = tuple(value.shape) if isinstance(value, Tensor) else None
        if plain is not None:
            plain[node] = tuple(value.shape) if isinstance(value, Tensor) else value
        for below in node.all_input_nodes:
            readers[below] -= 1
            if not readers[below]:
                del values[below]
    raise AssertionError("a graph without output")


def call_of(node: fx.Node, value: Callable[[fx.Node], Any], module: Callable[[str], nn.Module]
            ) -> tuple[Callable[..., Any], Any, Any]:
    """The call that a node stands for: function, arguments, named arguments.

    Args:
        value: of a node that it reads.
        module: by its dotted path.
    """
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
    if node.op == "call_module":
        return module(str(node.target)), args, kwargs
    if node.op == "call_method":
        return getattr(args[0], str(node.target)), args[1:], kwargs
    return node.target, args, kwargs  # type: ignore[return-value]


def look_up(root: nn.Module, path: str) -> Any:
    """A parameter or buffer by its dotted path."""
    place, _, name = path.rpartition(".")
    return getattr(root.get_submodule(place), name)
