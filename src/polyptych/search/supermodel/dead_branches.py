"""What a task needs when it skips units: no branch of which only the size is read.

Code that reads the size of a branch (``h, w = y.shape[-2:]``) would keep the whole branch alive after a skip, with
parameters that get no gradient. The capture has recorded every plain value for several sizes and numbers of images
(:func:`polyptych.search.capture.node_values.record`); a value that was the same in all of these runs replaces it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from polyptych.search.capture.node_values import carries_tensors, recorded

Bypass = Callable[[fx.Node], fx.Node | None]
"""The node whose value replaces that of this one, if this one ends a skipped unit."""


@dataclass(eq=False)
class SizeReaders:
    """Finds replacements for plain values of one graph. ``made`` holds the nodes created for this."""

    graph: fx.Graph
    made: dict[Any, fx.Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.order = {node: i for i, node in enumerate(self.graph.nodes)}
        self.output = next(node for node in self.order if node.op == "output")
        self.alike: dict[Any, list[fx.Node]] = {}  # nodes by their recorded values
        for node in self.order:
            if (key := recorded(node)) is not None:
                self.alike.setdefault(key, []).append(node)

    def live(self, bypass: Bypass) -> tuple[set[fx.Node], dict[fx.Node, fx.Node]]:
        """The nodes that a task needs, and the replacements of some of them: another node of the graph, or a new node
        that reads the size of a living tensor."""
        tensors, plain = set[fx.Node](), set[fx.Node]()
        self._follow(self.output.all_input_nodes, bypass, tensors, plain)
        while True:
            found = _Living(self, tensors)
            dead = next((node for node in sorted(plain, key=self.order.__getitem__) if not found.keep(node)), None)
            if dead is None:
                return tensors | found.plain, found.replaced
            # No replacement: the tensors that this value is read from must be computed after all.
            self._follow([node for node in self._sources(dead) if node not in tensors], bypass, tensors, plain)

    def _follow(self, start: Iterable[fx.Node], bypass: Bypass, tensors: set[fx.Node], plain: set[fx.Node]) -> None:
        """Collect the tensors that the start is computed from, and the plain values that this takes."""
        waiting = list(start)
        while waiting:
            node = waiting.pop()
            if not (carries_tensors(node) or node.op in ("placeholder", "get_attr")):
                plain.add(node)
            elif node not in tensors:
                tensors.add(node)
                by = bypass(node)
                waiting += node.all_input_nodes if by is None else [by]

    def _sources(self, node: fx.Node) -> set[fx.Node]:
        """The tensors that a plain value is read from."""
        found, waiting = set[fx.Node](), [node]
        while waiting:
            for below in waiting.pop().all_input_nodes:
                if carries_tensors(below):
                    found.add(below)
                else:
                    waiting.append(below)
        return found


class _Living:
    """Which plain values can be obtained from tensors that are computed anyway."""

    def __init__(self, readers: SizeReaders, tensors: set[fx.Node]):
        self.readers, self.tensors = readers, tensors
        self.plain: set[fx.Node] = set()
        self.replaced: dict[fx.Node, fx.Node] = {}
        self._lost: set[fx.Node] = set()

    def keep(self, node: fx.Node) -> bool:
        """Whether a plain value can be obtained; if so, note how."""
        if node in self.plain:
            return True
        if node in self._lost:
            return False
        if self._computable(node):
            self.plain.add(node)
            return True
        self._lost.add(node)  # so that it does not replace itself
        if self._of_another_tensor(node) or self._another_value(node) or self._a_side(node):
            self.plain.add(node)
            self._lost.discard(node)
            return True
        return False

    def _computable(self, node: fx.Node) -> bool:
        given = {below for below in node.all_input_nodes if below.op in ("placeholder", "get_attr")}
        if not all(below in self.tensors or below in given or (not carries_tensors(below) and self.keep(below))
                   for below in node.all_input_nodes):
            return False
        self.plain |= given
        return True

    def _of_another_tensor(self, node: fx.Node) -> bool:
        """Read the value from a living tensor of the same shape as the dead one."""
        below = node.all_input_nodes
        if len(below) != 1 or "shape" not in below[0].meta:
            return False
        order = self.readers.order
        for other in self.readers.alike.get(recorded(below[0]), ()):
            if other in self.tensors and order[other] < order[node]:
                self.replaced[node] = self._made(node, below[0], other)
                return True
        return False

    def _another_value(self, node: fx.Node) -> bool:
        order = self.readers.order
        for other in self.readers.alike.get(recorded(node), ()):
            if order[other] < order[node] and other.op != "get_attr" and self._had(other):
                one, two = node.meta["kind"], other.meta["kind"]
                self.replaced[node] = other if one is two else self._converted(other, one)
                return True
        return False

    def _a_side(self, node: fx.Node) -> bool:
        """Read a height, a width, or a number of tokens from a living tensor, even if no code reads it there."""
        known = recorded(node)
        if known is None or node.meta["kind"] is not int:
            return False
        order = self.readers.order
        for other in sorted(self.tensors, key=order.__getitem__):
            if order[other] >= order[node]:
                break
            if "shape" in other.meta and (shapes := recorded(other)) is not None:
                for at, sides in enumerate(zip(*shapes[-1], strict=False)):
                    if sides == known[-1]:
                        key = (other, at)
                        if key not in self.readers.made:
                            self.readers.made[key] = _detached("call_method", "size", (other, at), {}, node)
                        self.replaced[node] = self.readers.made[key]
                        return True
        return False

    def _had(self, other: fx.Node) -> bool:
        return other not in self.replaced and self.keep(other)

    def _made(self, node: fx.Node, dead: fx.Node, living: fx.Node) -> fx.Node:
        key = (node, living)
        if key not in self.readers.made:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: living if n is dead else n)
            self.readers.made[key] = _detached(node.op, node.target, args, kwargs, node)
        return self.readers.made[key]

    def _converted(self, other: fx.Node, kind: type) -> fx.Node:
        key = (other, kind)
        if key not in self.readers.made:
            self.readers.made[key] = _detached("call_function", kind, (other,), {}, other)
        return self.readers.made[key]


def _detached(op: str, target: Any, args: Any, kwargs: Any, like: fx.Node) -> fx.Node:
    """A node in a graph of its own, so that the captured one stays as it is."""
    node = fx.Graph().create_node(op, target, args, kwargs, f"{like.name}_living")
    for below in node.all_input_nodes:  # the captured graph must not list it as a reader
        below.users.pop(node, None)
    node.meta.update(like.meta)
    return node
