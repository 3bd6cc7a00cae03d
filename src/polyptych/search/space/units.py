"""Policy units: the parts of a captured network for which a policy makes a choice.

- ``op``: every operation with weights, with the norms and scales that follow it.
- ``region``: every part between a fork and the join that closes it (a residual block, the attention and the MLP of a
  transformer block, the branches of an Inception module), every block without a shortcut, and every operation between
  these.
- ``stage``: regions of one resolution together, or the stages of a :class:`~polyptych.backbones._base.Backbone`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import fx

from polyptych.backbones._base import Backbone
from polyptych.search.capture.capturing import Capture
from polyptych.search.capture.dataflow import Dataflow
from polyptych.search.space.anchors import Anchor, Weights, find_weights, tensors_of
from polyptych.search.space.grouping import group_anchors, group_stages, stage_of
from polyptych.search.space.skips import Skip, skip_of_branch, skip_of_operation

Granularity = Literal["op", "region", "stage"]
GRANULARITIES: tuple[Granularity, ...] = ("op", "region", "stage")
FORMAT = 1


@dataclass(frozen=True)
class Unit:
    """One part of the network.

    Attributes:
        name: a path such as ``layer1.0``, for people and policy files.
        targets: paths of the modules and parameters that belong to it.
        norms: the targets that are normalization layers.
        before: positions of all units whose output reaches this one.
        depth: number of operations with weights on the longest path that ends here, its own included.
        parameters: number of parameter values.
        skip: what a task computes instead when it skips the unit; None if the unit cannot be skipped.
    """

    name: str
    targets: tuple[str, ...]
    norms: tuple[str, ...]
    before: frozenset[int]
    depth: int
    parameters: int
    skip: Skip | None


@dataclass(frozen=True, eq=False)
class Units:
    """All units of a network, in the order in which they run.

    Attributes:
        all: the units.
        granularity: how they were found.
        owner: position of the unit that each target belongs to.
        hash: hash of everything that a policy relies on: names, shapes of weights, and which units come before which.
    """

    all: tuple[Unit, ...]
    granularity: Granularity
    owner: dict[str, int]
    hash: str

    def __iter__(self) -> Iterator[Unit]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(unit.name for unit in self.all)


def find_units(capture: Capture, granularity: Granularity) -> Units:
    """The units of a captured network."""
    flow = Dataflow(capture.graph)
    weights = find_weights(capture, flow)
    groups: list[list[Anchor]] = [[anchor] for anchor in weights.anchors]
    joins: list[fx.Node | None] = [None] * len(groups)
    if granularity != "op":
        groups, joins = group_anchors(capture, flow, weights.anchors)
    if granularity == "stage":
        groups = group_stages(capture, groups)
        joins = [None] * len(groups)
    followers = _homes(flow, weights, groups, joins)
    units, nodes = [], []
    for group, join, following in zip(groups, joins, followers, strict=True):
        targets = tuple(dict.fromkeys([*(t for anchor in group for t in anchor.targets), *following]))
        parameters = {id(p): p.numel() for target in targets for p in tensors_of(capture.root, target)}
        skip = None
        if granularity == "op":
            skip = skip_of_operation(capture, group[0])
        elif granularity == "region" and join is not None:
            skip = skip_of_branch(capture, flow, join)
        named = granularity == "stage" and isinstance(capture.root, Backbone)
        norms = tuple(target for target in targets if target in weights.norms)
        units.append(Unit(stage_of(group[0].name) if named else _name(group), targets, norms, frozenset(), 0,
                          sum(parameters.values()), skip))
        nodes.append({node for anchor in group for node in anchor.nodes}
                     | {node for target, node in weights.followers if target in following})
    finished = _ordered(_distinct(units), nodes, flow)
    owner = {target: i for i, unit in enumerate(finished) for target in unit.targets}
    return Units(finished, granularity, owner, _hash(capture, finished, granularity))


def _homes(flow: Dataflow, weights: Weights, groups: Sequence[list[Anchor]], joins: Sequence[fx.Node | None]
           ) -> list[list[str]]:
    """For each group, the followers that belong to it: those inside its region, and those after its operations."""
    homes: list[list[str]] = [[] for _ in groups]
    placed: set[str] = set()
    places = {node: i for i, group in enumerate(groups) for anchor in group for node in anchor.nodes}
    inside: dict[fx.Node, int] = {}
    for i, join in enumerate(joins):
        if join is not None and (entry := flow.dominator[join]) is not None:
            inside |= dict.fromkeys(flow.between(entry, join), i)
    for target, node in weights.followers:
        if target in placed:
            continue
        placed.add(target)
        if node in inside:
            homes[inside[node]].append(target)
            continue
        before = flow.nearest(node, places)
        if before is None:  # nothing comes before it, so it belongs to the next operation
            before = next((n for n in places if flow.order[n] > flow.order[node]), next(iter(places), None))
        if before is not None:
            homes[places[before]].append(target)
    return homes


def _name(group: Sequence[Anchor]) -> str:
    """The longest common prefix of the paths of its operations' modules."""
    paths = [anchor.name.split(".") for anchor in group]
    common = paths[0]
    for path in paths[1:]:
        common = [a for a, b in zip(common, path, strict=False) if a == b][:_equal(common, path)]
    return ".".join(common) or group[0].name or "weights"


def _equal(one: Sequence[str], other: Sequence[str]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _distinct(units: Iterable[Unit]) -> list[Unit]:
    """The units with unique names: a second ``layer1`` becomes ``layer1#2``."""
    seen: dict[str, int] = {}
    distinct = []
    for unit in units:
        seen[unit.name] = number = seen.get(unit.name, 0) + 1
        distinct.append(unit if number == 1 else replace(unit, name=f"{unit.name}#{number}"))
    return distinct


def _ordered(units: list[Unit], nodes: list[set[fx.Node]], flow: Dataflow) -> tuple[Unit, ...]:
    """The units in the order in which they run, with their predecessors and depths."""
    order = sorted(range(len(units)), key=lambda i: min((flow.order[n] for n in nodes[i]), default=0))
    position = {node: new for new, old in enumerate(order) for node in nodes[old]}
    reached: dict[fx.Node, int] = {}  # sets of positions as bits
    before = [0] * len(units)
    depth: dict[fx.Node, int] = {}
    deepest = [0] * len(units)
    anchors = {node for old in order for node in nodes[old]}
    for node, below in flow.inputs.items():
        bits = 0
        for n in below:
            bits |= reached[n]
        level = max((depth[n] for n in below), default=0)
        at = position.get(node)
        if at is not None:
            before[at] |= bits & ~(1 << at)
            bits |= 1 << at
            if node in anchors and _is_operation(units[order[at]], node):
                level += 1
                deepest[at] = max(deepest[at], level)
        reached[node], depth[node] = bits, level
    return tuple(replace(units[old], depth=deepest[new],
                         before=frozenset(i for i in range(len(units)) if before[new] >> i & 1))
                 for new, old in enumerate(order))


def _is_operation(unit: Unit, node: fx.Node) -> bool:
    return not (node.op == "call_module" and str(node.target) in unit.norms) and (
        node.op == "call_module" or any(str(n.target) in unit.targets for n in node.all_input_nodes))


def _hash(capture: Capture, units: Sequence[Unit], granularity: Granularity) -> str:
    facts: list[object] = [FORMAT, granularity]
    for unit in units:
        shapes = [[target, [list(p.shape) for p in tensors_of(capture.root, target)]] for target in unit.targets]
        facts.append([unit.name, shapes, sorted(unit.before), None if unit.skip is None else unit.skip.kind])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
