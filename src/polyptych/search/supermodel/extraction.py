"""From a policy to a compact network: an ordinary module that computes the same as the supermodel, and no more."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from polyptych.search.capture.structure import Structure
from polyptych.search.space.policy import Policy
from polyptych.search.supermodel.execution_plan import BASE, ExecutionPlan
from polyptych.search.supermodel.model import Supermodel
from polyptych.search.supermodel.weights import ModuleTree, WeightBanks, copied, has, label, put, stream
from polyptych.types import Features, TaskFeatures


class Compact(nn.Module):
    """A multi-task network with no trace of the search.

    Weights of the backbone keep their names under ``body``; those of other banks are under ``body.copies``.

    Attributes:
        body: computes all tensors of all tasks, and the cut, as one flat tuple.
        tasks: names of the tasks, in order.
    """

    def __init__(self, body: fx.GraphModule, tasks: tuple[str, ...], structure: Structure, counts: tuple[int, int]):
        super().__init__()
        self.body, self.tasks, self._structure, self._counts = body, tasks, structure, counts

    def forward(self, image: Tensor) -> dict[str, Any]:
        """The result of the backbone for every task; a :class:`TaskFeatures` if the backbone returns
        :class:`Features`."""
        found = self.body(image)
        per_task, cut = self._counts
        result = {task: self._structure.build(found[i * per_task:(i + 1) * per_task])
                  for i, task in enumerate(self.tasks)}
        shared = tuple(found[len(found) - cut:]) if cut else ()
        return TaskFeatures(result, shared) if self._structure.kind is Features else result


def extract(supermodel: Supermodel, policy: Policy, *, share_weights: bool = False) -> Compact:
    """The compact network of a policy, with the supermodel's weights and running statistics.

    Args:
        share_weights: whether to use the supermodel's own modules, after which the supermodel must not be used any
            more; by default the network gets copies.

    Raises:
        InputError: the policy is for another network.
    """
    plan = supermodel.plan(policy)
    supermodel.banks.materialize([plan])
    banks = supermodel.banks
    taken = None if share_weights else dict[Any, Any]()
    home = nn.Module()
    graph = fx.Graph()
    emitted: list[fx.Node] = []
    cut: dict[int, fx.Node] = {}
    for i in range(len(plan.steps)):
        emitted.append(_emit(graph, home, banks, plan, i, emitted, cut, taken))
        if i in plan.cut:
            cut[i] = graph.call_method("view_as", (emitted[i], emitted[i]))
    rows = [cut[i] if i in cut else emitted[i] for task in policy.tasks for i in plan.outputs[task]]
    graph.output((*rows, *cut.values()))
    module = fx.GraphModule(home, graph, type(supermodel.backbone).__name__)
    module.delete_all_unused_submodules()
    _keep_persistence(module, plan, banks)
    graph.lint()
    per_task = len(rows) // len(policy.tasks)
    compact = Compact(module, policy.tasks, supermodel.capture.structure, (per_task, len(cut)))
    _keep_modes(compact, supermodel.training)
    return compact


def _keep_modes(compact: Compact, training: bool) -> None:
    """Give modules that only group layers the supermodel's training mode. Every layer keeps its own: frozen norms stay
    in evaluation mode."""
    for module in (compact, compact.body, *compact.body.modules()):
        if module in (compact, compact.body) or type(module) in (nn.Module, ModuleTree):
            module.training = training


def _emit(graph: fx.Graph, home: nn.Module, banks: WeightBanks, plan: ExecutionPlan, i: int, emitted: list[fx.Node],
          cut: dict[int, fx.Node], taken: dict[Any, Any] | None) -> fx.Node:
    step = plan.steps[i]
    node = step.node
    outside = cut if i not in plan.trunk else {}
    read = {n: outside.get(position, emitted[position]) for n, position in step.inputs.items()}
    if node.op == "placeholder":
        return graph.placeholder("image")
    if step.skip is not None:
        path = f"projections.{step.tasks[0]}.{step.skip.node}"
        put(home, path, _taken(banks.projection(step.skip, step.tasks[0]), taken))
        return graph.call_module(path, tuple(read.values()))
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), read.__getitem__)
    if node.op in ("get_attr", "call_module"):
        path = _settle(home, banks, plan, i, taken)
        return graph.get_attr(path) if node.op == "get_attr" else graph.call_module(path, args, kwargs)
    return graph.create_node(node.op, node.target, args, kwargs)


def _settle(home: nn.Module, banks: WeightBanks, plan: ExecutionPlan, i: int, taken: dict[Any, Any] | None) -> str:
    """Put what a step needs into the compact network, and return its path there."""
    step = plan.steps[i]
    target, bank = str(step.node.target), step.bank
    path = target if bank in (None, BASE) else f"copies.{label(bank)}.{target}"
    if step.node.op == "get_attr":
        if not has(home, path):
            put(home, path, _taken(banks.get(target, bank), taken))
        return path
    module = banks.module(target, bank, step.tasks)
    if bank is not None:
        first = plan.steps[plan.banks[target, bank][0]]
        if module is not banks.module(target, bank, first.tasks):
            # The same weights on another stream: separate statistics, with weights tied to those of the first.
            path = f"streams.{stream(bank, step.tasks)}.{target}"
    if not has(home, path):
        put(home, path, _taken(module, taken))
    return path


def _taken(value: Any, memo: dict[Any, Any] | None) -> Any:
    """The object itself, or a copy of it; copies are tied to each other as the originals are."""
    return value if memo is None else copied(value, memo)


def _keep_persistence(module: nn.Module, plan: ExecutionPlan, banks: WeightBanks) -> None:
    """Keep buffers that the graph reads directly in the state dict exactly if they are in the backbone's."""
    state = banks.backbone.state_dict().keys()
    for path in {str(step.node.target) for step in plan.steps if step.node.op == "get_attr" and step.bank is None}:
        place, _, name = path.rpartition(".")
        transient = module.get_submodule(place)._non_persistent_buffers_set
        (transient.discard if path in state else transient.add)(name)
