"""Where gradients come from: which parameters tasks share, gradient rows in one flat buffer, and their products."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch._functorch.config
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.errors import InputError
from polyptych.types import Output

CHUNK = 2**18  # columns of the gradient rows that are in float64 at a time


@dataclass(frozen=True, eq=False)
class Reach:
    """Which parameters the gradients of each task reach.

    Attributes:
        shared: those of several tasks (with one task: of that task before the cut, or all).
        trunk: those that lead to the cut, ``Output.shared``; empty without a cut.
        private: those of one task alone, by task.
        heads: those after the cut that gradients of a task reach, by task; interacting tasks have some in common.
        unused: trainable, but reached by no task.
        layer: the last layer of more than one dimension that all tasks share.
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
    """Measure who uses what, along the graph of gradients.

    Args:
        ends: by task, the tensors that its gradients start from: predictions or losses.
        cut: the tensors between the shared trunk and what follows.
    """
    stop = {tensor.grad_fn for tensor in cut if tensor.grad_fn is not None}
    every = {task: _leaves([x.grad_fn for x in tensors], frozenset()) for task, tensors in ends.items()}
    behind = {task: _leaves([x.grad_fn for x in tensors], frozenset(stop)) for task, tensors in ends.items()}
    before = _leaves(list(stop), frozenset())
    named = [p for p in network.parameters() if p.requires_grad]
    users = {id(p): [task for task, found in every.items() if id(p) in found] for p in named}
    trunk = tuple(p for p in named if id(p) in before)
    if len(ends) == 1:
        shared = trunk or tuple(p for p in named if users[id(p)])
    else:
        shared = tuple(p for p in named if len(users[id(p)]) > 1)
    inside = {id(p) for p in shared}
    private = {task: tuple(p for p in named if users[id(p)] == [task] and id(p) not in inside) for task in ends}
    heads = {task: tuple(p for p in named if id(p) in found) for task, found in behind.items()}
    by_all = [p for p in trunk or shared if p.ndim > 1 and len(users[id(p)]) == len(ends)]
    return Reach(shared, trunk, private, heads, tuple(p for p in named if not users[id(p)]), tuple(by_all[-1:]))


def predictions(output: Output) -> dict[str, list[Tensor]]:
    """By task, everything that is predicted for it, auxiliary predictions included."""
    ends = {task: [prediction] for task, prediction in output.final.items()}
    for extra in output.auxiliary:
        for task, prediction in extra.prediction.items():
            ends[task].append(prediction)
    return ends


def check_branches(cut: Sequence[Tensor]) -> None:
    """Refuse a cut where the gradient by one tensor would run through another, and count twice.

    Raises:
        InputError: one tensor of the cut was computed from another.
    """
    stop = {tensor.grad_fn for tensor in cut if tensor.grad_fn is not None}
    for node in stop:
        if any(below in stop for below in _nodes([node], frozenset()) if below is not node):
            raise InputError("Output.shared", "a tensor that was computed from another one of it", "tensors that "
                             "branch off the trunk", "let the encoder give `x.view_as(x)` in the place of each map x")


def _nodes(roots: Iterable, stop: frozenset) -> Iterator:
    """The nodes of the graph under some of its nodes, these included; not those to stop at, nor what is under them."""
    waiting, seen = [node for node in roots if node is not None], set()
    while waiting:
        node = waiting.pop()
        if node in seen or node in stop:
            continue
        seen.add(node)
        yield node
        waiting += [below for below, _ in node.next_functions if below is not None]


def _leaves(roots: Iterable, stop: frozenset) -> set[int]:
    return {id(node.variable) for node in _nodes(roots, stop) if hasattr(node, "variable")}


class Rows:
    """Gradients of several tasks by the same parameters: one flat buffer (k p), and a view for every parameter.

    The buffer stays allocated from step to step. Backward passes add into it, without a copy; the combination is made
    in its first row, from where the optimizer reads it.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], count: int):
        self.parameters = parameters
        first = parameters[0]
        if any(p.dtype != first.dtype or p.device != first.device for p in parameters):
            raise InputError("--balancer.level", "shared parameters of several types or devices",
                             "one type and one device", "choose --balancer.level representation or layer, or a "
                             "balancer that weighs losses alone, such as uncertainty")
        size = sum(p.numel() for p in parameters)
        self.flat: Float[Tensor, "k p"] = torch.zeros(count, size, dtype=first.dtype, device=first.device)
        self._views = [self._view(row) for row in self.flat]

    def _view(self, row: Float[Tensor, " p"]) -> list[Tensor]:
        views, offset = [], row.storage_offset()
        for parameter in self.parameters:
            # Of the parameter's own strides, as fast optimizers want it; where its memory has gaps or overlaps these
            # would reach beyond the places that belong to it here, and autograd wants contiguous gradients.
            strides = torch.empty_like(parameter, device="meta").stride()  # dense ones, its own where they are
            if strides != parameter.stride():
                strides = torch.empty(parameter.shape, device="meta").stride()
            views.append(row.as_strided(parameter.shape, strides, offset))
            offset += parameter.numel()
        return views

    @contextlib.contextmanager
    def filling(self, number: int) -> Iterator[None]:
        """Within, backward passes add to row ``number`` instead of to ``.grad``."""
        before = [parameter.grad for parameter in self.parameters]
        for parameter, view in zip(self.parameters, self._views[number], strict=True):
            parameter.grad = view
        try:
            yield
        finally:
            for parameter, gradient in zip(self.parameters, before, strict=True):
                parameter.grad = gradient

    def combine(self, coefficients: Sequence[float]) -> None:
        """The weighed sum of the rows, in the first row; the rows are lost."""
        first = self.flat[0].mul_(coefficients[0])
        for row, coefficient in zip(self.flat[1:], coefficients[1:], strict=True):
            first.add_(row, alpha=coefficient)

    def hand_over(self) -> None:
        """The first row becomes ``.grad``."""
        for parameter, view in zip(self.parameters, self._views[0], strict=True):
            parameter.grad = view


def gram(rows: Sequence[Float[Tensor, " p"]]) -> Float[Tensor, "k k"]:
    """Inner products in float64, of rows in any precision, without a copy of the whole."""
    result = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows[0].device)
    for start in range(0, rows[0].numel(), CHUNK):
        part = torch.stack([row[start:start + CHUNK] for row in rows]).double()
        result += part @ part.T
    return result


def product_of_batches(rows: Float[Tensor, "*s t p"]) -> tuple[Float[Tensor, "t t"], Float[Tensor, "t p"]]:
    """Inner products of the tasks' gradients in one batch with those in another, independent one, and the gradients of
    a third: of the three parts of a step (s t p), or of one batch that stands for all three (t p)."""
    if rows.ndim == 2:
        return gram([*rows]), rows
    first, second, last = rows
    return gram([*first, *second])[:len(first), len(first):], last


def keep_graphs() -> None:
    """Let several backward passes go through a network that is compiled from now on: its graph may then not give its
    memory away in the first."""
    settings = torch._functorch.config
    if hasattr(settings, "donated_buffer"):
        settings.donated_buffer = False


@contextlib.contextmanager
def undisturbed(network: nn.Module) -> Iterator[None]:
    """Run the network without lasting effect: afterwards its buffers (batch statistics) and the random numbers are what
    they were. Graphs made inside must be used inside."""
    before = [(buffer, buffer.detach().clone()) for buffer in network.buffers()]
    cuda = sorted({p.device.index for p in network.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=cuda):
        yield
    with torch.no_grad():
        for buffer, value in before:
            buffer.copy_(value)
