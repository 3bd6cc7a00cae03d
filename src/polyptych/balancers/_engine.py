"""What gradient balancers work with: shared parameters, gradient rows in one flat buffer, and inner products."""

from __future__ import annotations

import contextlib
import functools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
import torch._functorch.config
from jaxtyping import Float
from torch import Tensor, nn

from polyptych import devices, distributed
from polyptych.errors import InputError
from polyptych.types import Output

CHUNK = 2**18  # columns of the gradient rows that are converted to float64 at a time
COMPILED = "CompiledFunctionBackward"  # the single graph node of everything that was compiled together
ADVICE_FOR_COMPILED = ("call balancer.prepare(network, output) with an output of the network before it is compiled, "
                       "and compile its parts (network.encoder.compile(), ...)")


@dataclass(frozen=True, eq=False)
class Reach:
    """Which parameters the gradients of each task reach.

    Attributes:
        shared: parameters of several tasks (with one task: its parameters before the cut, or all of them).
        trunk: parameters that lead to the cut, ``Output.shared``; empty without a cut.
        private: by task, parameters of that task alone.
        heads: by task, parameters after the cut that its gradients reach; interacting tasks have some in common.
        unused: trainable parameters that no task reaches.
        layer: among the parameters of more than one dimension that all tasks share, the one used last.
    """

    shared: tuple[nn.Parameter, ...]
    trunk: tuple[nn.Parameter, ...]
    private: dict[str, tuple[nn.Parameter, ...]]
    heads: dict[str, tuple[nn.Parameter, ...]]
    unused: tuple[nn.Parameter, ...]
    layer: tuple[nn.Parameter, ...]

    @property
    def all(self) -> tuple[nn.Parameter, ...]:
        """Everything that any task's gradients reach."""
        return sum(self.private.values(), self.shared)

    def __str__(self) -> str:
        """One line: ``11,176,512 shared parameters, private semseg 2,361,613, depth 2,360,577``."""
        def number(parameters: Iterable[nn.Parameter]) -> str:
            return f"{sum(p.numel() for p in parameters):,}"

        private = ", ".join(f"{task} {number(own)}" for task, own in self.private.items())
        unused = f", unused {number(self.unused)}" if self.unused else ""
        return f"{number(self.shared)} shared parameters, private {private}{unused}"


def reach(network: nn.Module, ends: Mapping[str, Sequence[Tensor]], cut: Sequence[Tensor]) -> Reach:
    """Measure which task uses which parameters in one graph.

    Args:
        ends: by task, the tensors that its gradients start from: predictions or losses.
        cut: the tensors between the shared trunk and what follows.
    """
    return Sharing().measure(network, ends, cut)


class Sharing:
    """Which task uses which parameters, as seen in all graphs so far.

    Training freezes and unfreezes parameters, and may first use some after a thousand steps. A parameter missing here
    would get no gradient, so :meth:`follow` walks the graph of every step once for all tasks (a few tenths of a
    millisecond for a ResNet-50, without touching the device). One graph may lack what another has (a task without
    labels, a layer skipped at random), so the findings of all graphs are joined until the trainable parameters change
    or :meth:`measure` starts anew.

    A set of parameters is stored as the bits of an integer, which is quick to join and compare.
    """

    def __init__(self) -> None:
        self._trainable: tuple[nn.Parameter, ...] = ()
        self._used: dict[str, int] = {}  # by task
        self._behind: dict[str, int] = {}  # by task, without what only leads to the cut
        self._before = 0  # what leads to the cut
        self._last_use: dict[int, int] = {}  # number of the operation that used a parameter last, by id
        self.reach: Reach | None = None

    def measure(self, network: nn.Module, ends: Mapping[str, Sequence[Tensor]], cut: Sequence[Tensor]) -> Reach:
        """The reach according to this graph alone."""
        self.__init__()  # type: ignore[misc]
        return self.follow(network, ends, cut)

    def follow(self, network: nn.Module, ends: Mapping[str, Sequence[Tensor]], cut: Sequence[Tensor]) -> Reach:
        """The reach according to this graph and those before; the same object as before if nothing is new.

        Raises:
            InputError: this graph does not show which task uses which parameters, or it shows a first use, on which
                several processes could disagree.
        """
        trainable = tuple(p for p in network.parameters() if p.requires_grad)
        same = len(trainable) == len(self._trainable) and all(map(operator.is_, trainable, self._trainable))
        if not same:
            check_whole(network)
            self._rename(trainable)
        bit_of = {id(p): 1 << k for k, p in enumerate(trainable)}
        tops = {task: [x.grad_fn for x in tensors if x.grad_fn is not None] for task, tensors in ends.items()}
        stop = {x.grad_fn for x in cut if x.grad_fn is not None}
        under, kinds = _bits([node for nodes in (*tops.values(), stop) for node in nodes], bit_of)
        if "CheckpointFunctionBackward" in kinds:
            raise InputError("activation checkpointing", "reentrant checkpoints, which hide which task uses which "
                             "parameters", "checkpoints that keep the graph",
                             "pass use_reentrant=False to torch.utils.checkpoint")
        if COMPILED in kinds and self.reach is not None:
            if not same:
                raise InputError("a compiled network", "trainable parameters that changed since they were measured",
                                 "a graph that shows which task uses them", ADVICE_FOR_COMPILED)
            return self.reach  # a compiled graph is one node: it seems to use every parameter for every task
        if COMPILED in kinds and _entered_apart(ends):
            raise InputError("a compiled network", "one compiled part with the results of several tasks",
                             "a graph that shows which task uses which parameters", ADVICE_FOR_COMPILED)
        used = {task: self._used.get(task, 0) | _union(under, nodes) for task, nodes in tops.items()}
        before = self._before | _union(under, stop)
        if same and self.reach is not None and used == self._used and before == self._before:
            return self.reach
        if same and self.reach is not None and distributed.world() > 1:
            raise InputError("the network of a gradient balancer", "a parameter that a task uses for the first time",
                             "the same parameters in every process", "call balancer.prepare(network, output) in every "
                             "process, with an output that uses all of them")
        self._used, self._before = used, before
        for task, nodes in tops.items():
            behind, _ = _bits(nodes, bit_of, stop)
            self._behind[task] = self._behind.get(task, 0) | _union(behind, [x for x in nodes if x not in stop])
        self._last_use |= _last_uses([node for nodes in tops.values() for node in nodes], bit_of)
        self.reach = self._assemble()
        return self.reach

    def _rename(self, trainable: tuple[nn.Parameter, ...]) -> None:
        """Translate what is known of the remaining parameters to their new bits."""
        bit_of = {id(p): 1 << k for k, p in enumerate(trainable)}
        moves = [(1 << k, bit_of[id(p)]) for k, p in enumerate(self._trainable) if id(p) in bit_of]

        def moved(bits: int) -> int:
            return sum(new for old, new in moves if bits & old)

        self._used = {task: moved(bits) for task, bits in self._used.items()}
        self._behind = {task: moved(bits) for task, bits in self._behind.items()}
        self._before, self._trainable = moved(self._before), trainable

    def _assemble(self) -> Reach:
        named = self._trainable
        users = [[task for task, bits in self._used.items() if bits >> k & 1] for k in range(len(named))]
        trunk = tuple(p for k, p in enumerate(named) if self._before >> k & 1)
        if len(self._used) == 1:
            shared = trunk or tuple(p for p, tasks in zip(named, users, strict=True) if tasks)
        else:
            shared = tuple(p for p, tasks in zip(named, users, strict=True) if len(tasks) > 1)
        inside = {id(p) for p in shared}
        private = {task: tuple(p for p, tasks in zip(named, users, strict=True)
                               if tasks == [task] and id(p) not in inside) for task in self._used}
        heads = {task: tuple(p for k, p in enumerate(named) if bits >> k & 1) for task, bits in self._behind.items()}
        common = {id(p) for p, tasks in zip(named, users, strict=True) if len(tasks) == len(self._used)}
        # Modules are registered in any order; what counts is which of them ran last.
        by_all = sorted((p for p in trunk or shared if p.ndim > 1 and id(p) in common),
                        key=lambda p: self._last_use.get(id(p), -1))
        return Reach(shared, trunk, private, heads,
                     tuple(p for p, tasks in zip(named, users, strict=True) if not tasks), tuple(by_all[-1:]))


def check_whole(network: nn.Module) -> None:
    """Refuse a network whose parameters are sharded, or whose gradients a wrapper takes care of.

    Raises:
        InputError: it is sharded, or wrapped for parallel training.
    """
    wrapped = nn.parallel.DistributedDataParallel, nn.DataParallel
    modules = [network] if isinstance(network, wrapped) else [*network.modules()]
    if any(isinstance(module, wrapped) for module in modules):
        raise InputError("the network of a gradient balancer", "DistributedDataParallel",
                         "the bare network, whose gradients the balancer averages itself",
                         "pass `network.module`, also in the forward pass")
    kinds = {kind.__name__ for module in modules for kind in type(module).__mro__}
    sharded = any(hasattr(parameter, "placements") for parameter in network.parameters())
    if sharded or kinds & {"FSDPModule", "FullyShardedDataParallel"}:
        raise InputError("the network of a gradient balancer", "sharded parameters (fully_shard, FSDP, DTensor)",
                         "whole gradients of every task, to compare them", "choose a balancer that weights losses, "
                         "such as uncertainty, or pass an unsharded network")


def predictions(output: Output) -> dict[str, list[Tensor]]:
    """All predictions of each task, including auxiliary ones."""
    ends = {task: [prediction] for task, prediction in output.final.items()}
    for extra in output.auxiliary:
        for task, prediction in extra.prediction.items():
            ends[task].append(prediction)
    return ends


def check_branches(cut: Sequence[Tensor]) -> None:
    """Refuse a cut in which the gradient of one tensor would run through another and count twice.

    Raises:
        InputError: one tensor of the cut was computed from another.
    """
    stop = {tensor.grad_fn for tensor in cut if tensor.grad_fn is not None}
    for node in stop:
        if any(below in stop for below in _nodes([node]) if below is not node):
            raise InputError("Output.shared", "a tensor that was computed from another of its tensors",
                             "tensors that branch off the trunk", "return `x.view_as(x)` instead of each map x")


def _nodes(roots: Iterable, stop: Set = frozenset()) -> Iterator:
    """The given nodes and all nodes below them, except those to stop at and what is only below those."""
    waiting, seen = [node for node in roots if node is not None], set()
    while waiting:
        node = waiting.pop()
        if node in seen or node in stop:
            continue
        seen.add(node)
        yield node
        waiting += [below for below, _ in node.next_functions if below is not None]


def _bits(roots: Iterable, bit_of: Mapping[int, int], stop: Set = frozenset()) -> tuple[dict[Any, int], set[str]]:
    """For every node of the graph, the parameters below it; and the names of the kinds of nodes. The walk is bottom-up,
    so that it visits each node once, however many tasks and paths lead there."""
    found: dict[Any, int] = {}
    kinds: set[type] = set()
    waiting: list[tuple[Any, list | None]] = [(node, None) for node in roots]
    while waiting:
        node, below = waiting.pop()
        if below is not None:
            bits = 0
            for other in below:
                bits |= found.get(other, 0)
            found[node] = bits
        elif node not in found and node not in stop:
            found[node] = 0
            below = [other for other, _ in node.next_functions if other is not None]
            if below:
                kinds.add(type(node))
                waiting.append((node, below))
                waiting += [(other, None) for other in below if other not in found]
            elif (variable := getattr(node, "variable", None)) is not None:
                found[node] = bit_of.get(id(variable), 0)
    return found, {kind.__name__ for kind in kinds}


def _union(under: Mapping[Any, int], nodes: Iterable) -> int:
    return functools.reduce(operator.or_, (under[node] for node in nodes), 0)


def _last_uses(roots: Iterable, bit_of: Mapping[int, int]) -> dict[int, int]:
    """When each parameter was last used, as the number of its node; autograd numbers nodes in execution order."""
    last: dict[int, int] = {}
    for node in _nodes(roots):
        for below, _ in node.next_functions:
            key = id(getattr(below, "variable", None))
            if key in bit_of:
                last[key] = max(last.get(key, -1), node._sequence_nr())
    return last


def _entered_apart(ends: Mapping[str, Sequence[Tensor]]) -> bool:
    """Whether tasks read different results of one compiled part, whose graph does not show what each of them uses."""
    entries: dict[Any, dict[str, set[int]]] = {}  # by compiled part and task, which of its results are read
    for task, tensors in ends.items():
        edges = {edge for node in _nodes(x.grad_fn for x in tensors) for edge in node.next_functions}
        for node, number in edges | {(x.grad_fn, x.output_nr) for x in tensors}:
            if type(node).__name__ == COMPILED:
                entries.setdefault(node, {}).setdefault(task, set()).add(number)
    return any(one != other for readers in entries.values() for one in readers.values() for other in readers.values())


class Rows:
    """Gradients of several tasks with respect to the same parameters: one flat buffer (k p) and a view per parameter.

    The buffer stays allocated from step to step. Backward passes add to it without a copy; the combined gradient
    replaces its first row, where the optimizer reads it.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], count: int):
        self.parameters = parameters
        first = parameters[0]
        if any(p.dtype != first.dtype or p.device != first.device for p in parameters):
            raise InputError("--balancer.level", "shared parameters of several types or devices",
                             "one type and one device", "choose --balancer.level representation or layer, or a "
                             "balancer that only weights losses, such as uncertainty")
        size = sum(p.numel() for p in parameters)
        self.flat: Float[Tensor, "k p"] = torch.zeros(count, size, dtype=first.dtype, device=first.device)
        self._views = [self._view(row) for row in self.flat]

    def fit(self, parameters: Sequence[nn.Parameter], count: int) -> bool:
        """Whether these rows fit the parameters as they are now."""
        return (self.parameters is parameters and len(self.flat) == count
                and (self.flat.dtype, self.flat.device) == (parameters[0].dtype, parameters[0].device))

    def _view(self, row: Float[Tensor, " p"]) -> list[Tensor]:
        views, offset = [], row.storage_offset()
        for parameter in self.parameters:
            # Fast optimizers want the parameter's own strides. If its memory has gaps or overlaps, these would reach
            # beyond its part of the row, and autograd wants contiguous gradients.
            strides = torch.empty_like(parameter, device="meta").stride()  # dense; its own where those are dense
            if strides != parameter.stride():
                strides = torch.empty(parameter.shape, device="meta").stride()
            views.append(row.as_strided(parameter.shape, strides, offset))
            offset += parameter.numel()
        return views

    @contextlib.contextmanager
    def filling(self, number: int) -> Iterator[None]:
        """In this context, backward passes add to row ``number`` instead of to ``.grad``."""
        before = [parameter.grad for parameter in self.parameters]
        for parameter, view in zip(self.parameters, self._views[number], strict=True):
            parameter.grad = view
        try:
            yield
        finally:
            for parameter, gradient in zip(self.parameters, before, strict=True):
                parameter.grad = gradient

    def combine(self, coefficients: Sequence[float]) -> None:
        """Replace the first row with the weighted sum of all rows."""
        first = self.flat[0].mul_(coefficients[0])
        for row, coefficient in zip(self.flat[1:], coefficients[1:], strict=True):
            first.add_(row, alpha=coefficient)

    def hand_over(self) -> None:
        """Make the first row ``.grad``."""
        for parameter, view in zip(self.parameters, self._views[0], strict=True):
            parameter.grad = view


def gram(rows: Sequence[Float[Tensor, " p"]]) -> Float[Tensor, "k k"]:
    """Inner products (k k) of rows of any type, in float64 (:func:`devices.widest`), without a copy of all rows."""
    wide = devices.widest(rows[0].device)
    result = torch.zeros(len(rows), len(rows), dtype=wide, device=rows[0].device)
    for start in range(0, rows[0].numel(), CHUNK):
        part = torch.stack([row[start:start + CHUNK] for row in rows]).to(wide)
        result += part @ part.T
    return result


def gram_of_maps(maps: Sequence[Iterable[Tensor]], scale: float | Tensor = 1.0) -> Float[Tensor, "k k"]:
    """Inner products of the tasks' gradients with respect to the shared features, sample by sample, summed over
    samples, maps, and processes.

    Args:
        maps: by feature map, the gradient of each task (b c h w) in this process, times the scale of the losses.
    """
    local = torch.stack([gram([x.flatten() for x in of_tasks]) for of_tasks in maps]).sum(0)
    return unscaled(distributed.total(local), scale, distributed.world())


def unscaled(inner: Float[Tensor, "k k"], scale: float | Tensor, processes: int = 1) -> Float[Tensor, "k k"]:
    """Inner products (k k) without the scale of the losses, which the gradients carry, and with gradients averaged over
    processes, where they were sums. A scale on the device stays there."""
    if isinstance(scale, Tensor):  # divides twice: its square may overflow float32
        return inner / scale / scale / processes**2
    return inner / (processes * scale) ** 2


def product_of_batches(rows: Float[Tensor, "*s t p"]) -> Float[Tensor, "t t"]:
    """Inner products of the tasks' gradients in one batch with those in another, independent batch: the first two of
    the three parts of a step (s t p), or one batch that stands for both (t p)."""
    if rows.ndim == 2:
        return gram([*rows])
    first, second, _ = rows
    return gram([*first, *second])[:len(first), len(first):]


def keep_graphs() -> None:
    """Allow several backward passes through networks compiled from now on: the first pass must not give away the
    memory of the graph."""
    settings = torch._functorch.config
    if hasattr(settings, "donated_buffer"):
        settings.donated_buffer = False


@contextlib.contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Run the network without a lasting effect: restore its buffers (batch statistics) and the random state afterward.
    Use graphs from inside the context only inside it."""
    before = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    try:
        with devices.same_random({p.device: None for p in network.parameters()}):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
