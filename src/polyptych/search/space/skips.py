"""What a task computes instead of a unit that it skips.

AutoMTL (Zhang, Liu, Guan, NeurIPS 2022) skips single convolutions: the input passes unchanged where the shapes allow
it, otherwise through the task's own 1x1 convolution and BatchNorm. The result has the right size only if the
convolution pads so that its stride alone sets the size; other convolutions cannot be skipped (the authors' code fails
there at run time). In every other space, only residual branches can be skipped: the shortcut remains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import fx, nn

from polyptych.ops.pointwise import Pointwise
from polyptych.search.capture.capturing import Capture
from polyptych.search.capture.dataflow import Dataflow
from polyptych.search.space.anchors import Anchor


@dataclass(frozen=True)
class Projection:
    """A 1x1 convolution without bias, then BatchNorm: channels in and out, and stride."""

    inputs: int
    outputs: int
    stride: tuple[int, int]

    def build(self) -> nn.Sequential:
        return nn.Sequential(Pointwise(self.inputs, self.outputs, 1, self.stride, bias=False),
                             nn.BatchNorm2d(self.outputs))


@dataclass(frozen=True)
class Skip:
    """How to skip a unit.

    Attributes:
        node: name of the node whose value is replaced.
        by: name of the node whose value replaces it, through the projection if there is one.
        kind: ``branch`` for a residual branch, ``identity`` or ``projection`` for a convolution.
    """

    node: str
    by: str
    kind: Literal["branch", "identity", "projection"]
    projection: Projection | None = None


def skip_of_branch(capture: Capture, flow: Dataflow, join: fx.Node) -> Skip | None:
    """How to skip a region that ends in a sum with the unchanged value that entered it; None for other regions."""
    name = join.target if isinstance(join.target, str) else getattr(join.target, "__name__", "")
    operands = [x for x in join.args[:2] if isinstance(x, fx.Node)]
    if name not in ("add", "iadd", "__add__") or len(operands) != 2 or join.kwargs:
        return None
    entry = flow.dominator[join]
    assert entry is not None  # a region has an entry
    for shortcut, branch in (operands, operands[::-1]):
        same = _shape(entry) == _shape(join) == _shape(shortcut)
        if same and branch is not entry and _unchanged(capture, shortcut, entry):
            return Skip(join.name, shortcut.name, "branch")
    return None


def _unchanged(capture: Capture, node: fx.Node, entry: fx.Node) -> bool:
    """Whether a node has the value of the entry, passed on unchanged by modules and methods in between."""
    while node is not entry:
        passes = node.op == "call_module" and isinstance(capture.root.get_submodule(str(node.target)), nn.Identity)
        named = node.op == "call_method" and node.target in ("contiguous", "clone")
        if not (passes or named) or not node.all_input_nodes:
            return False
        node = node.all_input_nodes[0]
    return True


def skip_of_operation(capture: Capture, anchor: Anchor) -> Skip | None:
    """How to skip a single convolution, as in AutoMTL; None for other operations."""
    node = anchor.nodes[0]
    if len(anchor.nodes) != 1 or node.op != "call_module" or len(node.all_input_nodes) != 1:
        return None
    convolution: Any = capture.root.get_submodule(str(node.target))
    if not isinstance(convolution, nn.Conv2d):
        return None
    source = node.all_input_nodes[0]
    before, after = _shape(source), _shape(node)
    if before is None or after is None:
        return None
    stride: Any = tuple(convolution.stride)
    if before == after and set(stride) == {1}:
        return Skip(node.name, source.name, "identity")
    shrunk = tuple((n - 1) // s + 1 for n, s in zip(before[2:], stride, strict=True))
    keeps = isinstance(convolution.padding, str) or "Same" in type(convolution).__name__ or all(
        2 * p == d * (k - 1) for p, d, k in zip(convolution.padding, convolution.dilation, convolution.kernel_size,
                                                strict=True))
    if shrunk != after[2:] or not keeps:
        return None
    return Skip(node.name, source.name, "projection",
                Projection(convolution.in_channels, convolution.out_channels, stride))


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    return node.meta.get("shape")
