"""What a policy costs: a sum over the steps of its plan, from a table with one row per node of the captured network.

Parameters and multiply-adds are exact: they equal what :func:`polyptych.profiling.operators.count` and ``parameters()``
report for the compact network. The activation peak is that of a forward pass without gradients, with the order and
lifetimes of the plan, including views and what a closed module allocates while it runs. Latency is the sum of the
median times of the nodes, each measured alone on one device: good for ranking, but no forecast (docs/searching.md
compares).

Only the encoder counts: the decoder is the same for every policy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from polyptych import devices
from polyptych.errors import InputError
from polyptych.logbook import environment
from polyptych.profiling.memory import StorageWatch
from polyptych.profiling.operators import EXTRA_FORMULAS
from polyptych.profiling.timing import latency
from polyptych.record import decode, encode, read_json, write_json
from polyptych.search.capture.graph_functions import require
from polyptych.search.capture.replay import call_of, look_up
from polyptych.search.space.budget import PolicyCost
from polyptych.search.space.policy import Policy
from polyptych.search.space.skips import Skip
from polyptych.search.supermodel.execution_plan import Bank, ExecutionPlan
from polyptych.search.supermodel.model import Supermodel


@dataclass(frozen=True)
class NodeCost:
    """The cost of one node.

    Attributes:
        multiply_adds, seconds: of one run.
        new: bytes of new storages in its result.
        peak: peak bytes that it allocates while it runs, its result included.
        views: names of the inputs whose storages its result shares.
    """

    multiply_adds: int = 0
    seconds: float = 0.0
    new: int = 0
    peak: int = 0
    views: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conditions:
    """The conditions under which a table was measured."""

    size: tuple[int, int]
    device: str
    hardware: str
    threads: int
    torch: str
    timed: bool


@dataclass(frozen=True)
class CostTable:
    """Costs by the names of nodes; ``skips`` holds those of projections, by the nodes that these replace."""

    setting: Conditions
    nodes: dict[str, NodeCost]
    skips: dict[str, NodeCost] = field(default_factory=dict)

    def cost(self, supermodel: Supermodel, policy: Policy) -> PolicyCost:
        """The cost of a policy's encoder."""
        plan = supermodel.plan(policy)
        free = NodeCost()  # of a node that replaces a size of another
        rows = [self.skips[step.skip.node] if step.skip is not None else self.nodes.get(step.node.name, free)
                for step in plan.steps]
        return PolicyCost(_parameters(supermodel, plan), sum(row.multiply_adds for row in rows), _peak(plan, rows),
                    sum(row.seconds for row in rows))

    def write(self, path: Path) -> None:
        write_json(path, encode(self))

    @classmethod
    def read(cls, path: Path) -> CostTable:
        return decode(cls, read_json(path), str(path))


def measure_costs(supermodel: Supermodel, size: tuple[int, int], *, timed: bool = False, device: str = "cpu",
                  repeats: int = 15, seconds: float = 0.2) -> CostTable:
    """Run the captured network once, node by node, and note what each does.

    Args:
        size: height and width of the image.
        timed: also measure latency, on ``device``.
        repeats, seconds: number of timed runs of every node, and about how long these may take.

    Raises:
        InputError: the network does not take images of this size.
    """
    place = torch.device(device)
    root, capture = supermodel.backbone, supermodel.capture
    home = next(root.parameters()).device
    try:
        with _evaluating(root), devices.same_random([place]):
            root.to(place)
            image = _image(root, size)
            nodes, skips = _measure(supermodel, image, place, repeats if timed else 0, seconds)
            if timed:
                nodes, skips = _scaled(nodes, skips, _whole(root, image, place, repeats, seconds))
    except (RuntimeError, AssertionError) as error:
        raise InputError("--size", f"{size[0]} {size[1]}, which the network does not take ({str(error)[:100]})",
                         f"a size such as {capture.shape[2]} {capture.shape[3]}",
                         "choose another size") from None
    finally:
        root.to(home)
    hardware = devices.name_of(place) if place.type != "cpu" else str(environment()["processor"])
    return CostTable(Conditions(size, str(place), hardware, torch.get_num_threads(), torch.__version__, timed), nodes,
                     skips)


def _whole(root: nn.Module, image: Tensor, place: torch.device, repeats: int, seconds: float) -> float:
    """Seconds that the whole backbone takes."""
    with torch.inference_mode():
        return latency(partial(root, image), place, repeats, 10 * seconds).median


def _scaled(nodes: dict[str, NodeCost], skips: dict[str, NodeCost], whole: float
            ) -> tuple[dict[str, NodeCost], dict[str, NodeCost]]:
    """Scale the times so that they add up to that of the whole backbone: an operation that is run repeatedly finds its
    weights and inputs in the caches, unlike one that runs between others."""
    factor = whole / max(sum(row.seconds for row in nodes.values()), 1e-12)
    one, other = ({name: replace(row, seconds=factor * row.seconds) for name, row in rows.items()}
                  for rows in (nodes, skips))
    return one, other


@contextmanager
def _evaluating(root: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode inside the context."""
    training = {module: module.training for module in root.modules()}
    root.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def _image(root: nn.Module, size: tuple[int, int]) -> Tensor:
    reference = next(root.parameters())
    noise = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    return noise.to(reference.device, reference.dtype)


def _measure(supermodel: Supermodel, image: Tensor, place: torch.device, repeats: int, seconds: float
             ) -> tuple[dict[str, NodeCost], dict[str, NodeCost]]:
    capture = supermodel.capture
    values: dict[fx.Node, Any] = {}
    rows: dict[str, NodeCost] = {}
    skips: dict[str, NodeCost] = {}
    by_node = {unit.skip.node: unit.skip for unit in supermodel.units if unit.skip is not None}
    by_name = {node.name: node for node in capture.graph.nodes}
    for node in capture.graph.nodes:
        if node.op == "output":
            break
        if node.op == "placeholder":
            values[node], rows[node.name] = image, NodeCost()
        elif node.op == "get_attr":
            constant = capture.constants.get(str(node.target))
            value = look_up(capture.root, str(node.target)) if constant is None else constant
            values[node], rows[node.name] = value.to(place), NodeCost()
        elif node.op == "call_function" and node.target in (require, torch._assert):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node], rows[node.name] = node.target(*args, **kwargs), NodeCost()
        else:
            function, args, kwargs = call_of(node, values.__getitem__, capture.root.get_submodule)
            call = partial(function, *args, **kwargs)
            values[node], rows[node.name] = _row(call, node, values, place, repeats, seconds)
            skip = by_node.get(node.name)
            if skip is not None and skip.projection is not None:
                skips[node.name] = _projection_row(skip, by_name[skip.by], values, place, repeats, seconds)
    return rows, skips


def _projection_row(skip: Skip, source: fx.Node, values: dict[fx.Node, Any], place: torch.device, repeats: int,
                    seconds: float) -> NodeCost:
    assert skip.projection is not None
    reference = values[source]
    module = skip.projection.build().to(reference.device, reference.dtype).eval()
    return _row(partial(module, reference), source, {source: reference}, place, repeats, seconds)[1]


def _row(call: Callable[[], Any], node: fx.Node, values: dict[fx.Node, Any], place: torch.device, repeats: int,
         seconds: float) -> tuple[Any, NodeCost]:
    """The value of a node, and its cost."""
    # Counted with gradients, because without them torch may hand whole layers to fused kernels that have no formula.
    with torch.enable_grad(), FlopCounterMode(display=False, custom_mapping=EXTRA_FORMULAS) as counter:
        call()
    with torch.no_grad():
        with StorageWatch() as watch:
            value = call()
        tensors = [x for x in tree_leaves(value) if isinstance(x, Tensor)]
        if not tensors:
            return value, NodeCost()
        inputs = {below.name: _storages(values[below]) for below in (node, *node.all_input_nodes) if below in values}
        made = {key: size for x in tensors for key, size in _storages(x).items()}
        before = {key for found in inputs.values() for key in found}
        spent = 0.0
        if repeats:
            with torch.inference_mode():
                spent = latency(call, place, repeats, seconds).median
    new = sum(size for key, size in made.items() if key not in before)
    views = tuple(name for name, found in inputs.items() if found.keys() & made.keys())
    return value, NodeCost(counter.get_total_flops() // 2, spent, new, watch.peak, views)


def _storages(value: Any) -> dict[int, int]:
    """Bytes of the storages in a value, by the address of the storage."""
    storages = [x.untyped_storage() for x in tree_leaves(value) if isinstance(x, Tensor)]
    return {storage._cdata: storage.nbytes() for storage in storages}


def _parameters(supermodel: Supermodel, plan: ExecutionPlan) -> int:
    """The number of parameters that a plan uses; each bank's tensors count once."""
    counted: dict[tuple[int, Bank | None], int] = {}  # by parameter and bank
    total = 0
    for step in plan.steps:
        if step.skip is not None:
            assert step.skip.projection is not None
            projection = step.skip.projection
            total += projection.inputs * projection.outputs + 2 * projection.outputs
        elif step.node.op in ("call_module", "get_attr") and str(step.node.target) not in supermodel.capture.constants:
            for parameter, size in supermodel.parameter_sizes[str(step.node.target)].items():
                counted[parameter, step.bank] = size
    return total + sum(counted.values())


def _peak(plan: ExecutionPlan, rows: list[NodeCost]) -> int:
    """Peak bytes alive: each step allocates its result, and values that are no longer read are freed.

    This counts storages, not tensors: a reshape allocates nothing but keeps its storage alive, so a storage lives until
    the last use of any value that holds it. Outputs stay to the end. So does the cut, which the supermodel and the
    compact network return with the outputs.
    """
    last = {i: len(rows) for kept in (*plan.outputs.values(), plan.cut) for i in kept}  # outputs and the cut stay
    for at, done in enumerate(plan.last_use):
        last |= {i: at for i in done if i not in last}
    holds: list[set[int]] = []  # the steps whose storages each value holds
    for i, (step, row) in enumerate(zip(plan.steps, rows, strict=True)):
        kept = {i} if row.new else set()
        for node, at in step.inputs.items():
            if node.name in row.views or (step.skip is not None and row.views):
                kept |= holds[at]
        holds.append(kept)
    until: dict[int, int] = {}
    for i, kept in enumerate(holds):
        for owner in kept:
            until[owner] = max(until.get(owner, 0), last.get(i, i))
    alive = peak = 0
    ends: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        peak = max(peak, alive + max(row.peak, row.new))
        if i in until:
            alive += row.new
            ends.setdefault(until[i], []).append(i)
        alive -= sum(rows[owner].new for owner in ends.pop(i, []))
    return peak


def threads_in_words(setting: Conditions) -> str:
    """The device of a table, in words."""
    cores = os.cpu_count() or 1
    about = f", {setting.threads} of {cores} threads" if setting.device == "cpu" else ""
    return f"{setting.hardware or setting.device}{about}, torch {setting.torch}"
