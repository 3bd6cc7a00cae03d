"""The nodes of each unit between its first and its last weight: where its choices run side by side, and where their
values are mixed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from polyptych.search.capture import Capture
from polyptych.search.flow import Flow, carries_tensors
from polyptych.search.units import Units


@dataclass(frozen=True, eq=False)
class Spans:
    """
    Attributes:
        unit: for each node inside a span, the position of its unit.
        exits: nodes inside whose values are read outside.
    """

    unit: dict[fx.Node, int]
    exits: frozenset[fx.Node]


def find_spans(capture: Capture, units: Units, without: Iterable[str] = ()) -> Spans:
    """
    Args:
        without: targets that do not depend on the choice at their unit.
    """
    free = set(without)
    flow = Flow(capture.graph)
    sources: list[set[fx.Node]] = [set() for _ in units]
    sinks: list[set[fx.Node]] = [set() for _ in units]
    weighs: dict[fx.Node, set[int]] = {}  # units whose weights a value is made of, among values without the image
    stateful: dict[fx.Node, set[int]] = {}
    for node in capture.graph.nodes:
        target = str(node.target)
        own = units.owner.get(target) if node.op in ("call_module", "get_attr") and target not in free else None
        below = set[int]().union(*(weighs.get(n, set()) for n in node.all_input_nodes))
        if own is not None:
            sources[own].add(node)
            below.add(own)
        if own is None and not carries_tensors(node):
            continue  # shapes are the same for all weights
        if node in flow:
            for u in below:
                sinks[u].add(node)
            if below:
                stateful[node] = below
        else:
            weighs[node] = below
    by_name = {node.name: node for node in capture.graph.nodes}
    found: dict[fx.Node, int] = {}
    for u, unit in enumerate(units):
        ends = sinks[u] | ({by_name[unit.skip.node]} if unit.skip is not None else set())
        others = {node for node, users in stateful.items() if u not in users}
        down = _reached(sources[u], others, forward=True)
        up = _reached(ends, others, forward=False)
        inside = (down & up) | (sources[u] & up) | ends
        for node in inside:
            found.setdefault(node, u)
    exits = {node for node, u in found.items()
             if any(found.get(reader) != u for reader in node.users)}
    return Spans(found, frozenset(exits))


def _reached(start: set[fx.Node], barriers: set[fx.Node], forward: bool) -> set[fx.Node]:
    """All nodes on ways from here that meet no barrier, the first ones included."""
    seen, waiting = set(start), list(start)
    while waiting:
        node = waiting.pop()
        for other in node.users if forward else node.all_input_nodes:
            if other not in seen and other not in barriers:
                seen.add(other)
                waiting.append(other)
    return seen
