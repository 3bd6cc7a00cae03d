"""The supermodel: one forward pass for all tasks under any policy; what tasks have in common is computed once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from polyptych.errors import InputError
from polyptych.search.capture.capturing import Capture, capture
from polyptych.search.capture.replay import call_of, look_up
from polyptych.search.space.policy import SHARED, Compilation, Norms, Policy, SpaceName
from polyptych.search.space.spaces import Space, make_space
from polyptych.search.space.units import Granularity, Units, find_units
from polyptych.search.supermodel.execution_plan import ExecutionPlan, Planner, Step
from polyptych.search.supermodel.weights import WeightBanks
from polyptych.types import Features, TaskFeatures


def compile(backbone: nn.Module, tasks: Sequence[str], *, space: SpaceName = "tree",
            granularity: Granularity | None = None, norms: Norms | None = None, skip: bool = True,
            pinned: Mapping[str, str] | None = None, size: tuple[int, int] | None = None, whole: Sequence[str] = (),
            any_size: bool = True) -> Supermodel:
    """A supermodel of any backbone, on which policies can be run, searched for and extracted.

    The backbone's weights are used as they are and keep their names; load them before or after compiling.

    Args:
        backbone: takes an image (b 3 h w) and returns a tensor, or lists, tuples, dicts or Features of tensors.
        tasks: names of the tasks.
        space: which policies there are, :mod:`polyptych.search.space.spaces`.
        granularity: granularity of the units; by default ``op`` for the space ``automtl``, else ``region``.
        norms: ``task`` gives every task norms of its own everywhere, as AutoMTL does (the default there); ``stream``
            treats them as part of their units (the default elsewhere).
        skip: whether tasks may skip units, where that is possible.
        pinned: for patterns of unit names (``layer1.*``), the only choice that is allowed there.
        size, whole, any_size: see :func:`polyptych.search.capture.capturing.capture`.

    Raises:
        InputError: the backbone cannot be captured, or a pattern matches no unit.
    """
    chosen = granularity or ("op" if space == "automtl" else "region")
    how = Compilation(chosen, any_size, tuple(whole), size)
    captured = capture(backbone, size=size, whole=whole, any_size=any_size)
    units = find_units(captured, chosen)
    if not units:
        raise InputError(f"the network {type(backbone).__name__}", "no weights that its result depends on",
                         "at least one layer with weights", "choose another network")
    return Supermodel(captured, units, make_space(space, units, tuple(tasks), how, norms=norms, skip=skip,
                                                  pinned=pinned or {}))


class Supermodel(nn.Module):
    """A backbone in which every task may have its own copy of every unit.

    The backbone's state dict is stored under ``banks.backbone`` with its own names, and weights may be loaded into it
    before or after compiling. The policy is an argument of ``forward``; its parameters are never part of the network.

    Attributes:
        capture, units, space: the captured backbone, its units, and the policies to choose from.
        banks: all weights.
        tasks: names of the tasks, in order.
    """

    def __init__(self, capture: Capture, units: Units, space: Space):
        super().__init__()
        self.capture, self.units, self.space = capture, units, space
        self.tasks = space.tasks
        self.planner = Planner(capture, units)
        self.banks = WeightBanks(capture, units, self.planner, self.tasks)
        # Every module of the backbone keeps its training mode; the modules around it follow the backbone's.
        wrappers = {self, *self.banks.modules()} - set(self.backbone.modules())
        for module in wrappers:
            module.training = self.backbone.training

    @property
    def backbone(self) -> nn.Module:
        """The network that was captured: the shared weights."""
        return self.banks.backbone

    @cached_property
    def parameter_sizes(self) -> dict[str, dict[int, int]]:
        """For every target of a node, the number of values of each of its parameters; targets that have a parameter in
        common know it by the same key."""
        keys: dict[int, int] = {}
        found: dict[str, dict[int, int]] = {}
        for node in self.capture.graph.nodes:
            if node.op in ("call_module", "get_attr") and str(node.target) not in self.capture.constants:
                part = look_up(self.backbone, str(node.target))
                own = part.parameters() if isinstance(part, nn.Module) else (part,)
                found[str(node.target)] = {keys.setdefault(id(parameter), len(keys)): parameter.numel()
                                           for parameter in own if isinstance(parameter, nn.Parameter)}  # no buffer
        return found

    @property
    def compilation(self) -> Compilation:
        return self.space.compilation

    def one_backbone(self) -> Policy:
        """The backbone itself, once for all tasks: the unit of relative budgets in every space. It need not be a policy
        of the space: AutoMTL's norms per task, or a unit that is pinned to ``own``, cost more."""
        rows = ((SHARED,) * len(self.tasks),) * len(self.units)
        return replace(self.space.all_shared(), choices=rows, norms="stream")

    def plan(self, policy: Policy) -> ExecutionPlan:
        """The execution plan of a policy."""
        self.space.check_fit(policy)
        return self.planner.plan(policy)

    def materialize(self, policies: Iterable[Policy] | None = None) -> None:
        """Make the copies that these policies use (by default, a copy of every unit for every task), so that an
        optimizer sees all parameters. Existing copies stay as they are."""
        chosen = self.space.corners() if policies is None else policies
        self.banks.materialize(map(self.plan, chosen))

    def renew(self) -> None:
        """Reset every copy to the backbone's current weights, as between phases of a search. The parameters stay the
        same objects, so optimizers keep them."""
        self.banks.renew()

    def forward(self, image: Float[Tensor, "b c h w"], policy: Policy) -> dict[str, Any]:
        """The result of the backbone for every task, with the weights that the policy gives the task.

        If the backbone returns :class:`Features`, the result is a :class:`TaskFeatures` with the cut between what all
        tasks share and what follows.
        """
        plan = self.plan(policy)
        values: list[Any] = [None] * len(plan.steps)
        cut: dict[int, Tensor] = {}
        for i, step in enumerate(plan.steps):
            values[i] = self._compute(plan, i, step, values, cut, image)
            if i in plan.cut:  # a separate view: the trunk's own readers must not add to the gradient at the cut
                cut[i] = values[i].view_as(values[i])
            for done in plan.last_use[i]:
                values[done] = None
        build = self.capture.structure.build
        result = {task: build([cut[i] if i in cut else values[i] for i in rows])
                  for task, rows in plan.outputs.items()}
        if self.capture.structure.kind is Features:
            return TaskFeatures(result, shared=tuple(cut.values()))
        return result

    def _compute(self, plan: ExecutionPlan, i: int, step: Step, values: Sequence[Any], cut: dict[int, Tensor],
                 image: Tensor) -> Any:
        node = step.node
        if node.op == "placeholder":
            return image
        if node.op == "get_attr":
            return self.banks.get(str(node.target), step.bank)
        # Steps outside the trunk read the separate view, so that gradients can be taken at the cut.
        outside = cut if i not in plan.trunk else {}
        read = {n: outside[at] if at in outside else values[at] for n, at in step.inputs.items()}
        if step.skip is not None:
            return self.banks.projection(step.skip, step.tasks[0])(*read.values())
        function, args, kwargs = call_of(node, read.__getitem__,
                                         lambda path: self.banks.module(path, step.bank, step.tasks))
        return function(*args, **kwargs)
