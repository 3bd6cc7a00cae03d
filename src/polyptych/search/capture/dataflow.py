"""How activations flow through a captured graph: which nodes carry them, their dominators, and the regions of joins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from polyptych.search.capture.node_values import carries_tensors


@dataclass(frozen=True, eq=False)
class Region:
    """The nodes between a fork and a join: every path to ``join`` leads through ``entry``.

    Attributes:
        entry: the value that enters; not inside.
        join: the node where the paths meet; inside.
        inside: all nodes on paths from entry to join.
    """

    entry: fx.Node
    join: fx.Node
    inside: frozenset[fx.Node]


class Dataflow:
    """The part of a graph that computes tensors from the image.

    Attributes:
        order: position of each node in the graph.
        inputs: for each node that depends on the image through tensors, its inputs that do, too (shapes do not count).
        readers: the inverse of ``inputs``.
    """

    def __init__(self, graph: fx.Graph):
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.inputs: dict[fx.Node, tuple[fx.Node, ...]] = {}
        self.readers: dict[fx.Node, list[fx.Node]] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                self.inputs[node] = ()
            elif node.op != "output" and carries_tensors(node):
                below = tuple(n for n in node.all_input_nodes if n in self.inputs)
                if below:
                    self.inputs[node] = below
                    for n in below:
                        self.readers.setdefault(n, []).append(node)
        self._dominators()

    def __contains__(self, node: fx.Node) -> bool:
        return node in self.inputs

    def _dominators(self) -> None:
        """Find each node's immediate dominator: the last node on every path from the image to the node.

        For a node with several inputs, it is the nearest common ancestor of the inputs in the dominator tree, found by
        climbing from the deeper one (Cooper, Harvey, Kennedy, 2001). One pass is enough: the graph has no cycle and its
        nodes come after their inputs, so the dominators of all inputs are final.
        """
        self.dominator: dict[fx.Node, fx.Node | None] = {}
        depth: dict[fx.Node, int] = {}
        for node, below in self.inputs.items():
            common: fx.Node | None = below[0] if below else None
            for other in below[1:]:
                while common is not other:
                    if common is None or other is None:
                        common = None
                        break
                    if depth[common] >= depth[other]:
                        common = self.dominator[common]
                    else:
                        other = self.dominator[other]  # type: ignore[assignment]
            self.dominator[node] = common
            depth[node] = 0 if common is None else depth[common] + 1

    def regions(self) -> list[Region]:
        """The region that each join closes, in the order of the joins."""
        found = []
        for join, below in self.inputs.items():
            entry = self.dominator[join]
            if len(below) > 1 and entry is not None:
                found.append(Region(entry, join, frozenset(self.between(entry, join))))
        return found

    def between(self, entry: fx.Node, end: fx.Node) -> set[fx.Node]:
        """All nodes on paths from ``entry`` (excluded) to ``end`` (included)."""
        inside, waiting = {end}, [end]
        while waiting:
            for below in self.inputs[waiting.pop()]:
                if below is not entry and below not in inside:
                    inside.add(below)
                    waiting.append(below)
        return inside

    def nearest(self, start: fx.Node, wanted: Iterable[fx.Node]) -> fx.Node | None:
        """The last of the wanted nodes, in the order of the graph, from which a path leads to ``start`` without passing
        another wanted node."""
        goals, seen, waiting, found = set(wanted), {start}, [start], []
        while waiting:
            for below in self.inputs.get(waiting.pop(), ()):
                if below in seen:
                    continue
                seen.add(below)
                if below in goals:
                    found.append(below)
                else:
                    waiting.append(below)
        return max(found, key=self.order.__getitem__, default=None)
