"""The last resort of capture: modules that the user names, in the order in which they run.

This serves networks whose own code no tracer can follow. The network must do nothing to tensors between the named
modules: the first takes the image, each takes results of others, and the network returns results of some of them.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, fx, nn

from polyptych.errors import InputError
from polyptych.search.capture.node_values import describe
from polyptych.search.capture.structure import take_apart


@torch.no_grad()
def chain(root: nn.Module, patterns: Sequence[str], image: Tensor) -> fx.Graph:
    """The graph of the named modules.

    Args:
        patterns: patterns of paths; among nested modules that match, the outermost counts.

    Raises:
        InputError: the network does something between the modules.
    """
    named: list[str] = []
    for path, _ in root.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in named)
        if path and not inside and any(fnmatchcase(path, pattern) for pattern in patterns):
            named.append(path)
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any], Any]] = []
    handles = [_watch(root.get_submodule(path), path, calls) for path in named]
    try:
        outputs, _ = take_apart(root(image))
    finally:
        for handle in handles:
            handle.remove()
    graph = fx.Graph()
    known: list[tuple[Tensor, fx.Node]] = []
    _remember(known, image, graph.placeholder("image"), "")
    for path, args, kwargs, result in calls:
        new_args, new_kwargs = (_nodes(part, known, f"what enters {path}") for part in (args, kwargs))
        node = graph.call_module(path, new_args, new_kwargs)
        if isinstance(result, Tensor):
            _remember(known, result, node, path)
            continue
        describe(node, result)
        node.meta["place"] = path
        for i, part in enumerate(result if isinstance(result, list | tuple) else ()):
            if isinstance(part, Tensor):
                _remember(known, part, graph.call_function(operator.getitem, (node, i)), path)
    graph.output(_nodes(tuple(outputs), known, "the result"))
    return graph


def _watch(module: nn.Module, path: str, calls: list[Any]) -> Any:
    return module.register_forward_hook(lambda _, args, kwargs, result: calls.append((path, args, kwargs, result)),
                                        with_kwargs=True)


def _remember(known: list[tuple[Tensor, fx.Node]], value: Tensor, node: fx.Node, place: str) -> None:
    describe(node, value)
    node.meta["place"] = place
    known.append((value, node))


def _nodes(value: Any, known: Sequence[tuple[Tensor, fx.Node]], where: str) -> Any:
    """The value with its tensors replaced by nodes."""
    if isinstance(value, Tensor):
        for tensor, node in reversed(known):
            if tensor is value:
                return node
        raise InputError("the network to be captured", f"{where}: a tensor that no named module returned",
                         "modules (whole=[...]) with no other operation between them", "name larger modules")
    if isinstance(value, list | tuple):
        return type(value)([_nodes(part, known, where) for part in value])
    if isinstance(value, dict):
        return {key: _nodes(part, known, where) for key, part in value.items()}
    return value
