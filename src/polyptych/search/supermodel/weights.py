"""Weights of the supermodel: the backbone's own, copies of units made at their first use, and statistics per stream."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polyptych.search.capture.capturing import Capture
from polyptych.search.space.policy import OWN
from polyptych.search.space.skips import Skip
from polyptych.search.space.units import Units
from polyptych.search.supermodel.execution_plan import BASE, Bank, ExecutionPlan, Planner


class WeightBanks(nn.Module):
    """Everything with state that a captured network may use.

    The names ``backbone``, ``copies``, ``streams``, and ``projections``, and ``banks`` in the supermodel, are part of
    checkpoints. ``backbone`` is the network itself, with the names that its checkpoints have. ``copies`` holds, under
    the name of a bank, modules and parameters under the same paths. A copy is a clone of the backbone's weights at the
    time when it is made (:meth:`materialize` makes all copies at once, for an optimizer that must know them).
    ``streams`` holds norms with the weights of a bank but the running statistics of one stream: the same weights may
    see the features of several sets of tasks.
    """

    def __init__(self, capture: Capture, units: Units, planner: Planner, tasks: Sequence[str]):
        super().__init__()
        self.backbone = capture.root
        self.copies, self.streams, self.projections = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self.tasks = tuple(tasks)
        self._units, self._planner = units, planner
        self._found: dict[Any, nn.Module] = {}  # results of `module`
        for name, value in capture.constants.items():
            self.register_buffer(name, value, persistent=False)

    def get(self, target: str, bank: Bank | None) -> Any:
        """A module, parameter, buffer, or constant."""
        if bank is None or bank == BASE:
            return getattr(self, target) if target in self._buffers else at(self.backbone, target)
        return at(self.copy_of(self._units.owner[target], bank), target)

    def module(self, target: str, bank: Bank | None, tasks: Sequence[str]) -> nn.Module:
        """A module, with the running statistics of the stream of features that these tasks have in common."""
        key = (target, bank, tuple(tasks))
        if key not in self._found:
            self._found[key] = self._module(target, bank, tasks)
        return self._found[key]

    def _module(self, target: str, bank: Bank | None, tasks: Sequence[str]) -> nn.Module:
        module: nn.Module = self.get(target, bank)
        # The module's own statistics are those of all tasks together or, in a task's own copy, of that task.
        if target not in self._planner.statistics or bank is None or bank.kind == OWN or len(tasks) == len(self.tasks):
            return module
        name = stream(bank, tasks)
        if name not in self.streams:
            self.streams[name] = ModuleTree()
        tree = self.streams[name]
        if not has(tree, target):
            put(tree, target, tied_copy(module))
        return at(tree, target)

    def copy_of(self, unit: int, bank: Bank) -> nn.Module:
        """The tree of a bank that holds its copy of a unit; makes the copy if there is none yet."""
        name = label(bank)
        if name not in self.copies:
            self.copies[name] = ModuleTree()
        tree = self.copies[name]
        targets = self._units.all[unit].targets
        if targets and not has(tree, targets[0]):
            memo: dict[int, Any] = {}  # one for all targets, so that tied weights stay tied
            for target in targets:
                put(tree, target, copied(at(self.backbone, target), memo))
        return tree

    @torch.no_grad()
    def renew(self) -> None:
        """Reset all existing copies and streams to the backbone's current state; parameters stay the same objects."""
        now = {**dict(self.backbone.named_parameters(remove_duplicate=False)),
               **dict(self.backbone.named_buffers(remove_duplicate=False))}
        for tree in (*self.copies.values(), *self.streams.values()):
            for name, tensor in (*tree.named_parameters(), *tree.named_buffers()):
                tensor.copy_(now[name])

    def projection(self, skip: Skip, task: str) -> nn.Module:
        """The projection that a task has instead of a convolution that it skips."""
        assert skip.projection is not None
        if task not in self.projections:
            self.projections[task] = nn.ModuleDict()
        own: Any = self.projections[task]
        if skip.node not in own:
            reference = next(self.backbone.parameters())
            own[skip.node] = skip.projection.build().to(reference.device, reference.dtype).train(self.training)
        return own[skip.node]

    def materialize(self, plans: Iterable[ExecutionPlan]) -> None:
        """Make all copies, streams, and projections that these plans use."""
        for plan in plans:
            for step in plan.steps:
                if step.skip is not None:
                    self.projection(step.skip, step.tasks[0])
                elif step.bank is not None:
                    if step.node.op == "call_module":
                        self.module(str(step.node.target), step.bank, step.tasks)
                    else:
                        self.get(str(step.node.target), step.bank)


class ModuleTree(nn.Module):
    """Modules and parameters under dotted paths."""


def at(root: nn.Module, path: str) -> Any:
    """The module or tensor under a dotted path."""
    found: Any = root
    for name in path.split("."):
        found = getattr(found, name)
    return found


def has(root: nn.Module, path: str) -> bool:
    """Whether there is something under a dotted path, other than a tree that leads further."""
    found: Any = root
    for name in path.split("."):
        found = getattr(found, name, None)
        if found is None:
            return False
    return not isinstance(found, ModuleTree)


def put(root: nn.Module, path: str, value: nn.Module | Tensor) -> None:
    """Put a module, parameter, or buffer under a dotted path."""
    *places, name = path.split(".")
    for place in places:
        if not hasattr(root, place):
            root.add_module(place, ModuleTree())
        root = getattr(root, place)
    if isinstance(value, nn.Module):
        existing = getattr(root, name, None)
        if isinstance(existing, ModuleTree):  # a parameter inside came first
            for key, inner in existing._parameters.items():
                setattr(value, key, inner)
        root.add_module(name, value)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(name, value)
    else:
        root.register_buffer(name, value, persistent=False)


def copied(value: Any, memo: dict[Any, Any]) -> Any:
    """A deep copy.

    The hooks of torch's old ``weight_norm`` and ``spectral_norm`` keep the last computed weight as a plain attribute
    with a gradient history, which torch refuses to copy. They recompute it before the module runs, so a copy of its
    numbers is enough. If torch copies a TorchScript module, the copied parameters send their gradients to the original;
    saving and loading the module gives it its own parameters.
    """
    for module in value.modules() if isinstance(value, nn.Module) else ():
        if isinstance(module, torch.jit.ScriptModule):
            if id(module) not in memo:
                memo[id(module)] = torch.jit.load(io.BytesIO(module.save_to_buffer()))
            continue
        for tensor in vars(module).values():
            if isinstance(tensor, Tensor) and not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    originals = list(value.parameters()) if isinstance(value, nn.Module) else [value]
    made = copy.deepcopy(value, memo)
    for original in originals:  # torch drops attributes of parameters that the optimizer needs
        for name in ("layers_above", "adapts"):
            if hasattr(original, name) and id(original) in memo:
                setattr(memo[id(original)], name, getattr(original, name))
    return made


def tied_copy(module: nn.Module) -> nn.Module:
    """A copy with the same parameters but separate buffers."""
    return copied(module, {id(p): p for p in module.parameters()})


def label(bank: Bank) -> str:
    """The name of a bank in a state dict."""
    return bank.kind if bank == BASE else f"{bank.kind}_{bank.name}"


def stream(bank: Bank, tasks: Sequence[str]) -> str:
    """The name of a stream in a state dict: a bank, and the tasks that share its features."""
    return "-".join([label(bank), *tasks])
