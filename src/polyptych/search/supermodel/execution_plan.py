"""What a policy computes: every node of the captured graph, once for each set of tasks with the same value there.

This is value numbering (Alpern, Wegman, Zadeck, POPL 1988) over pairs of node and task: two tasks have the same value
at a node if they use the same weights on the same inputs. So a shared trunk is computed once, in training and in the
compact network alike, and the cost of a network is a sum over the steps of its plan.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import fx

from polyptych.search.capture.capturing import Capture
from polyptych.search.capture.graph_functions import require
from polyptych.search.capture.node_values import carries_tensors
from polyptych.search.space.anchors import has_statistics
from polyptych.search.space.policy import OWN, SHARED, SKIP, Policy
from polyptych.search.space.skips import Skip
from polyptych.search.space.units import Units
from polyptych.search.supermodel.dead_branches import SizeReaders

REMEMBERED = 256  # number of plans to cache


class Bank(NamedTuple):
    """One set of weights of a unit: ``shared``, that of another ``group``, or a task's ``own``."""

    kind: str
    name: str = ""


BASE = Bank(SHARED)


def bank_of(choice: str, task: str) -> Bank:
    """The weights that a choice selects. Norms and scales that follow a skipped unit are those of ``shared``."""
    if choice in (SHARED, SKIP):
        return BASE
    return Bank(OWN, task) if choice == OWN else Bank("group", choice)


@dataclass(frozen=True, eq=False)
class Step:
    """One computation.

    Attributes:
        node: what is computed.
        bank: the set of weights to use; None if the node has no weights.
        inputs: for each node that this one reads, the position of the step that computes its value.
        tasks: the tasks that use the value.
        skip: the projection that replaces a unit that ``tasks[0]`` skips (the node is then the one whose value is
            replaced).
    """

    node: fx.Node
    bank: Bank | None
    inputs: dict[fx.Node, int]
    tasks: tuple[str, ...]
    skip: Skip | None = None


@dataclass(frozen=True, eq=False)
class ExecutionPlan:
    """The steps of a policy in order.

    Attributes:
        policy, steps: the policy and its steps.
        outputs: for every task, the steps that compute its tensors.
    """

    policy: Policy
    steps: tuple[Step, ...]
    outputs: dict[str, tuple[int, ...]]

    @cached_property
    def last_use(self) -> list[list[int]]:
        """For every step, the steps whose values are not needed after it. The supermodel frees these values there, and
        the activation peak (:mod:`polyptych.search.supermodel.costs`) counts them as freed."""
        kept = {i for row in self.outputs.values() for i in row}
        last = {i: i for i in range(len(self.steps))}
        for at, step in enumerate(self.steps):
            for i in step.inputs.values():
                last[i] = at
        done: list[list[int]] = [[] for _ in self.steps]
        for i, at in last.items():
            if i not in kept:
                done[at].append(i)
        return done

    @cached_property
    def trunk(self) -> frozenset[int]:
        """Steps that all tasks have in common and that depend on the image and on weights.

        Balancers take gradients with respect to what all tasks share. Steps without weights below (the image, its
        padding) have no parameters to balance; steps without the image (weights alone, positions) are no features.
        """
        everyone = len(self.policy.tasks)
        common: set[int] = set()
        weighted: set[int] = set()
        from_image: set[int] = set()
        for i, step in enumerate(self.steps):
            below = set(step.inputs.values())
            if step.node.op == "placeholder" or below & from_image:
                from_image.add(i)
            if step.bank is not None or below & weighted:
                weighted.add(i)
            # An item of a common tuple is common even if only one task reads it: the cut must be at the item, because a
            # tuple has no gradient.
            part = step.bank is None and below and below <= common and _is_item(step.node)
            if carries_tensors(step.node) and i in weighted & from_image and (len(step.tasks) == everyone or part):
                common.add(i)
        return frozenset(common)

    @cached_property
    def cut(self) -> tuple[int, ...]:
        """Steps of the trunk whose values are read outside the trunk or returned by the network. A balancer only has to
        combine the gradients of each task with respect to these values, once for the whole trunk; values that are not
        floating point have no gradients."""
        read = {i for at, step in enumerate(self.steps) if at not in self.trunk and carries_tensors(step.node)
                for i in step.inputs.values()}
        read |= {i for row in self.outputs.values() for i in row}
        return tuple(sorted(i for i in self.trunk & read
                            if self.steps[i].node.meta.get("dtype", torch.int64).is_floating_point))

    @cached_property
    def banks(self) -> dict[tuple[str, Bank], list[int]]:
        """The steps that use each (target, bank), in order."""
        users: dict[tuple[str, Bank], list[int]] = {}
        for i, step in enumerate(self.steps):
            if step.bank is not None and step.skip is None:
                users.setdefault((str(step.node.target), step.bank), []).append(i)
        return users


@dataclass(eq=False)
class Planner:
    """Makes plans of policies for one captured network."""

    capture: Capture
    units: Units
    statistics: frozenset[str] = field(init=False)
    _plans: OrderedDict[Policy, ExecutionPlan] = field(init=False, default_factory=OrderedDict)

    def __post_init__(self) -> None:
        modules = dict(self.capture.root.named_modules())
        self.statistics = frozenset(t for t in self.units.owner if t in modules and has_statistics(modules[t]))
        self._norms = frozenset(norm for unit in self.units for norm in unit.norms)
        self._skips = {unit.skip.node: i for i, unit in enumerate(self.units) if unit.skip is not None}
        self._by_name = {node.name: node for node in self.capture.graph.nodes}
        self._readers = SizeReaders(self.capture.graph)

    def __deepcopy__(self, memo: Any) -> Planner:
        return self  # it holds facts, no weights

    def plan(self, policy: Policy) -> ExecutionPlan:
        """The plan of a policy; recent plans are cached."""
        if policy not in self._plans:
            self._plans[policy] = self._make(policy)
            while len(self._plans) > REMEMBERED:
                self._plans.popitem(last=False)
        self._plans.move_to_end(policy)
        return self._plans[policy]

    def _make(self, policy: Policy) -> ExecutionPlan:
        """Plan node by node in the order of the graph, task by task. ``values`` holds the position of the step that
        computes a node's value for a task. Two tasks get the same step if and only if they use the same weights (bank),
        the same skip, and the same input *steps*. Equal input steps mean equal histories, so the comparison never has
        to look further back than one node."""
        live, replaced = {}, {}
        for task in policy.tasks:
            live[task], replaced[task] = self._live(policy, task)
        values: dict[str, dict[fx.Node, int]] = {task: {} for task in policy.tasks}
        keys: list[dict[str, Any]] = []
        for node in self.capture.graph.nodes:
            if node.op == "output":
                continue
            known: dict[Any, int] = {}
            for task in policy.tasks:
                if node not in live[task]:
                    continue
                env = values[task]
                skip = self._skip(policy, task, node)
                if skip is not None and skip.projection is None:  # no step: the shortcut's value replaces the sum
                    env[node] = env[self._by_name[skip.by]]
                    continue
                made = replaced[task].get(node, node)
                if made in env:  # replaced by an equal size that is already there
                    env[node] = env[made]
                    continue
                inputs = {n: env[n] for n in ([self._by_name[skip.by]] if skip else made.all_input_nodes)}
                # A projection belongs to the task that skips, so no other task ever has its value.
                bank = Bank(OWN, task) if skip else self.bank(policy, task, str(node.target))
                key = (bank if node.op in ("call_module", "get_attr") or skip else None, skip, tuple(inputs.values()))
                if key not in known:
                    known[key] = len(keys)
                    keys.append({"node": made, "bank": key[0], "inputs": inputs, "tasks": [], "skip": skip})
                env[node] = known[key]
                keys[known[key]]["tasks"].append(task)
        steps = tuple(Step(**{**key, "tasks": tuple(key["tasks"])}) for key in keys)
        output = next(node for node in self.capture.graph.nodes if node.op == "output")
        return ExecutionPlan(policy, steps, {task: tuple(values[task][n] for n in output.args[0])
                                    for task in policy.tasks})

    def bank(self, policy: Policy, task: str, target: str) -> Bank | None:
        """The set of weights that a task uses for a module or parameter."""
        at = self.units.owner.get(target)
        if at is None:
            return None
        return bank_of(OWN if policy.norms == "task" and target in self._norms else policy.choice(at, task), task)

    def _skip(self, policy: Policy, task: str, node: fx.Node) -> Skip | None:
        at = self._skips.get(node.name)
        return self.units.all[at].skip if at is not None and policy.choice(at, task) == SKIP else None

    def _live(self, policy: Policy, task: str) -> tuple[set[fx.Node], dict[fx.Node, fx.Node]]:
        """The nodes that a task needs, and the replacements of sizes that only other nodes have. Needed are all nodes
        on paths back from the task's outputs that bypass skipped units. The rest (the inside of a skipped branch) is
        not computed, which is why a skip costs nothing."""
        def bypass(node: fx.Node) -> fx.Node | None:
            skip = self._skip(policy, task, node)
            return None if skip is None else self._by_name[skip.by]

        live, replaced = self._readers.live(bypass)
        # Checks have no readers, so paths back never meet them. They stay if all tensors that they check are computed
        # anyway; a check of a skipped branch would bring that branch back.
        for node in self.capture.graph.nodes:
            if node.op == "call_function" and node.target in (require, torch._assert):
                needed, waiting, tensors = set(), [node], True
                while waiting:
                    below = waiting.pop()
                    if below in live or below in needed:
                        continue
                    if below is not node and carries_tensors(below):
                        tensors = False
                    needed.add(below)
                    waiting += below.all_input_nodes
                if tensors:
                    live |= needed
        return live, replaced


def _is_item(node: fx.Node) -> bool:
    return getattr(node.target, "__name__", "") == "getitem"
