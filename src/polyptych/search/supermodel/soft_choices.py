"""Soft policies: logits for every unit and task, and forward passes that are differentiable with respect to them.

With weights w over the choices of a task at a unit, the unit returns ``sum_c w_c y_c``: y_shared and y_own are computed
with the respective copies of the unit, y_skip without the unit (AutoMTL, NeurIPS 2022, eq. 1). The weights are
softmax((logits + g) / tau) with Gumbel noise g (Jang, Gu, Poole, ICLR 2017, arXiv 1611.01144) or, with the
straight-through estimator, one-hot with the gradient of that softmax.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from polyptych import devices
from polyptych.search.capture.capturing import Capture
from polyptych.search.capture.dataflow import Dataflow
from polyptych.search.capture.node_values import carries_tensors
from polyptych.search.capture.replay import call_of
from polyptych.search.space.policy import OWN, SKIP, Policy
from polyptych.search.space.skips import Skip
from polyptych.search.space.units import Units
from polyptych.search.supermodel.execution_plan import BASE, Bank, bank_of
from polyptych.search.supermodel.model import Supermodel
from polyptych.types import Features, TaskFeatures


class Logits(nn.Module):
    """Parameters of a soft policy: for every unit a table (tasks, choices), initially zero.

    They are not part of the supermodel, so that they can have an optimizer of their own.

    Attributes:
        choices: the choices of every unit, in the order of the columns.
        tables: the logits, a table (t c) for every unit.
    """

    def __init__(self, supermodel: Supermodel):
        super().__init__()
        self.space = supermodel.space
        self.choices = tuple(self.space.choices(i) for i in range(len(supermodel.units)))
        self.tables = nn.ParameterList(nn.Parameter(torch.zeros(len(supermodel.tasks), len(c))) for c in self.choices)

    def probabilities(self) -> list[Float[Tensor, "t _"]]:
        """The softmax of each unit's logits."""
        return [table.softmax(-1) for table in self.tables]

    def sample(self, temperature: float, *, hard: bool = False, generator: torch.Generator | None = None
               ) -> list[Float[Tensor, "t _"]]:
        """Gumbel-softmax weights of each unit; with ``hard``, one-hot weights with the gradient of the soft ones."""
        return [gumbel_softmax(table, temperature, hard, generator) for table in self.tables]

    def uniform(self) -> list[Float[Tensor, "t _"]]:
        """Equal weights: the mean of all choices, with which AutoMTL trains before it searches."""
        return [torch.full_like(table, 1 / table.shape[-1]).detach() for table in self.tables]

    def draw(self, random: Random) -> Policy:
        """A policy with choices drawn from the probabilities, independently, made to fit the space."""
        rows = [tuple(random.choices(names, weights=row)[0] for row in table.tolist())
                for names, table in zip(self.choices, self.probabilities(), strict=True)]
        return self.space.nearest(rows)


def gumbel_softmax(logits: Float[Tensor, "t c"], temperature: float, hard: bool = False,
                   generator: torch.Generator | None = None) -> Float[Tensor, "t c"]:
    """softmax((logits + g) / temperature), g = -log(-log(u)), u uniform; with ``hard``, one-hot with its gradient."""
    # Keep u away from 0 and 1, where the logarithms are infinite: one such draw would make the whole table NaN.
    uniform = devices.sent(torch.rand(logits.shape, generator=generator), logits.device, logits.dtype)
    uniform = uniform.clamp_(1e-20, 1 - 1e-7)
    soft = ((logits - (-uniform.log()).log()) / temperature).softmax(-1)
    if not hard:
        return soft
    one_hot = torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0)
    # The order matters: soft - soft is exactly 0, so the values are exactly one-hot, and a hard mixture computes the
    # same as the policy, bit for bit. (one_hot + soft) - soft would leave rounding errors.
    return one_hot + (soft - soft.detach())


@dataclass(eq=False)
class _Value:
    """The value of a node under one choice, or outside all units.

    ``token`` identifies how the value was computed (node, weights, tokens of the inputs), so that equal tokens mean
    equal values. This is the value numbering of :mod:`polyptych.search.supermodel.execution_plan` at run time: a value
    that tasks or choices have in common is looked up by its token, not computed again. A mixture depends on the weights
    of one task, so it gets a new token.
    """

    token: Any
    data: Any


class Mixer:
    """Runs a supermodel with mixed choices. All choices of all tasks are computed: memory and time grow with the number
    of tasks times the number of choices; values that come before all units are computed once.

    Inside a unit the choices run side by side in *lanes*, each with its own weights from the first to the last weight
    of the unit, and only values that leave the unit are mixed. Mixing after every operation would be a different
    network: a nonlinearity of a mean is not the mean of the nonlinearities.
    """

    def __init__(self, supermodel: Supermodel):
        self.supermodel = supermodel
        space = supermodel.space
        self.per_task = frozenset(norm for unit in supermodel.units for norm in unit.norms
                                  if space.norms == "task")
        self.extents: UnitExtents = find_extents(supermodel.capture, supermodel.units, self.per_task)
        self.choices = tuple(space.choices(i) for i in range(len(supermodel.units)))
        self._common: set[int] = set()  # units at and before which there is no choice: all tasks see the same there
        for i, unit in enumerate(supermodel.units):
            if unit.before <= self._common and len(self.choices[i]) == 1 and self.choices[i][0] != OWN:
                self._common.add(i)
        self._skips: dict[str, Skip] = {unit.skip.node: unit.skip for unit in supermodel.units if unit.skip is not None}
        self._by_name = {node.name: node for node in supermodel.capture.graph.nodes}

    def __call__(self, image: Float[Tensor, "b c h w"], weights: Sequence[Float[Tensor, "t _"]],
                 tasks: Sequence[str] | None = None) -> dict[str, Any]:
        """The result of the backbone with mixed choices, for every task.

        Args:
            image: (b 3 h w).
            weights: for each unit a table (t c), as :class:`Logits` returns them.
            tasks: the tasks to compute (default: all).
        """
        capture = self.supermodel.capture
        output = next(node for node in capture.graph.nodes if node.op == "output")
        known: dict[Any, Any] = {}
        result = {}
        for task in tasks or self.supermodel.tasks:
            values = self._run(image, weights, task, known)
            result[task] = capture.structure.build([values[node].data for node in output.args[0]])
        return TaskFeatures(result) if capture.structure.kind is Features else result

    def _run(self, image: Tensor, weights: Sequence[Tensor], task: str, known: dict[Any, Any]) -> dict[fx.Node, _Value]:
        at = self.supermodel.tasks.index(task)
        outside: dict[fx.Node, _Value] = {}
        lanes: dict[fx.Node, list[_Value]] = {}  # of nodes inside a unit, in the order of its choices
        for node in self.supermodel.capture.graph.nodes:
            if node.op == "output":
                continue
            unit = self.extents.unit.get(node)
            if unit is None:
                outside[node] = self._compute(node, task, None, outside, image, known)
                continue
            of_node = []
            for i, choice in enumerate(self.choices[unit]):
                inputs: dict[fx.Node, _Value] = {
                    n: lanes[n][i] if self.extents.unit.get(n) == unit else outside[n] for n in node.all_input_nodes}
                # A skip replaces only one node, the end of the unit. Its lane computes the rest with the shared
                # weights, because readers of the unit's other outputs still need a value.
                if choice == SKIP and node.name in self._skips:
                    of_node.append(self._skipped(self._skips[node.name], task, unit, i, outside, lanes, known))
                else:
                    of_node.append(self._compute(node, task, choice, inputs, image, known))
            lanes[node] = of_node
            if node in self.extents.exits or not node.users:
                mixed = mix([value.data for value in of_node], weights[unit][at])
                # With one choice there is nothing to mix, and other tasks with the same choice share the value.
                token = of_node[0].token if len(of_node) == 1 else object()
                outside[node] = _Value(token, mixed)
        return outside

    def _skipped(self, skip: Skip, task: str, unit: int, lane: int, outside: Mapping[fx.Node, _Value],
                 lanes: Mapping[fx.Node, list[_Value]], known: dict[Any, Any]) -> _Value:
        source = self._by_name[skip.by]
        value = lanes[source][lane] if self.extents.unit.get(source) == unit else outside[source]
        if skip.projection is None:
            return value
        key = (skip.node, "skip", task, value.token)
        if key not in known:
            known[key] = self.supermodel.banks.projection(skip, task)(value.data)
        return _Value(key, known[key])

    def _compute(self, node: fx.Node, task: str, choice: str | None, inputs: Mapping[fx.Node, _Value], image: Tensor,
                 known: dict[Any, Any]) -> _Value:
        target = str(node.target)
        bank = self._bank(target, task, choice) if node.op in ("call_module", "get_attr") else None
        tasks: tuple[str, ...] = ()
        if target in self.supermodel.planner.statistics:
            common = self.supermodel.units.owner[target] in self._common
            tasks = self.supermodel.tasks if common else (task,)
        key = (node.name, bank, tasks, *(inputs[n].token for n in node.all_input_nodes))
        if key not in known:
            known[key] = self._evaluate(node, bank, tasks, inputs, image)
        return _Value(key, known[key])

    def _evaluate(self, node: fx.Node, bank: Bank | None, tasks: tuple[str, ...], inputs: Mapping[fx.Node, _Value],
                  image: Tensor) -> Any:
        banks = self.supermodel.banks
        if node.op == "placeholder":
            return image
        if node.op == "get_attr":
            return banks.get(str(node.target), bank)
        function, args, kwargs = call_of(node, lambda n: inputs[n].data, lambda path: banks.module(path, bank, tasks))
        return function(*args, **kwargs)

    def _bank(self, target: str, task: str, choice: str | None) -> Bank | None:
        if target not in self.supermodel.units.owner:
            return None
        if target in self.per_task:
            return Bank(OWN, task)
        return BASE if choice is None else bank_of(choice, task)  # None: a weight that acts nowhere on its own


def mix(values: Sequence[Any], weights: Float[Tensor, " c"]) -> Any:
    """``sum_c weights_c values_c`` of tensors, and of the tensors in collections; for other values, the first one."""
    first = values[0]
    if len(values) == 1:
        return first
    if isinstance(first, Tensor) and first.is_floating_point():
        return torch.stack([weight.to(value) * value for weight, value in zip(weights, values, strict=True)]).sum(0)
    if isinstance(first, list | tuple) and not isinstance(first, torch.Size):
        return type(first)(mix(parts, weights) for parts in zip(*values, strict=True))
    return first


@dataclass(frozen=True, eq=False)
class UnitExtents:
    """The extent of each unit, from its first weight to its last: where its choices run side by side, and where their
    values are mixed.

    Attributes:
        unit: for each node inside an extent, the position of its unit.
        exits: the nodes inside whose values are read outside.
    """

    unit: dict[fx.Node, int]
    exits: frozenset[fx.Node]


def find_extents(capture: Capture, units: Units, without: Iterable[str] = ()) -> UnitExtents:
    """Find the extents of all units.

    Args:
        without: targets that do not depend on the choice at their unit.
    """
    # A node lies inside a unit if it is on a path from one of the unit's weights (sources) to the last nodes on which
    # these act (sinks), and no weight of another unit acts in between: there the other unit's choice takes effect, so
    # the values must have been mixed before.
    free = set(without)
    flow = Dataflow(capture.graph)
    sources: list[set[fx.Node]] = [set() for _ in units]
    sinks: list[set[fx.Node]] = [set() for _ in units]
    weighs: dict[fx.Node, set[int]] = {}  # for values that do not depend on the image, the units of their weights
    stateful: dict[fx.Node, set[int]] = {}
    for node in capture.graph.nodes:
        target = str(node.target)
        # Weights may be transformed before they act (a standardized kernel, an interpolated position embedding);
        # `weighs` follows them until they meet the image.
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
    return UnitExtents(found, frozenset(exits))


def _reached(start: set[fx.Node], barriers: set[fx.Node], forward: bool) -> set[fx.Node]:
    """All nodes on paths from ``start`` that meet no barrier, ``start`` included."""
    seen, waiting = set(start), list(start)
    while waiting:
        node = waiting.pop()
        for other in node.users if forward else node.all_input_nodes:
            if other not in seen and other not in barriers:
                seen.add(other)
                waiting.append(other)
    return seen
