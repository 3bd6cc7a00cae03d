"""Which nodes of a captured graph have weights, and to which operation each weight belongs.

An *anchor* is an operation that mixes channels or positions by weights: a convolution, a linear layer, a closed module,
a matrix product with a parameter. Norms, scales, biases, position embeddings, and class tokens are *followers*: they
belong to the last anchor before them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from polyptych.search.capture.capturing import Capture
from polyptych.search.capture.dataflow import Dataflow
from polyptych.search.capture.node_values import carries_tensors
from polyptych.search.capture.replay import look_up
from polyptych.search.capture.whole_modules import OPERATIONS, is_norm

PRODUCTS = frozenset({
    "linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    "matmul", "bmm", "mm", "addmm", "baddbmm", "einsum", "tensordot", "multi_head_attention_forward", "embedding"})
"""Functions and methods that multiply matrices."""


@dataclass(eq=False)
class Anchor:
    """One operation with weights.

    Attributes:
        nodes: the nodes that call it, in the order of the graph; the first is its position.
        targets: paths of the modules and parameters that belong to it.
        name: the path of its module, or of the module that holds its parameters.
    """

    nodes: list[fx.Node]
    targets: list[str] = field(default_factory=list)
    name: str = ""


@dataclass(frozen=True, eq=False)
class Weights:
    """All anchors; the followers, each with the node at which it first acts on an activation; and which are norms."""

    anchors: list[Anchor]
    followers: list[tuple[str, fx.Node]]
    norms: frozenset[str]


def find_weights(capture: Capture, flow: Dataflow) -> Weights:
    """Anchors and followers of a captured network. Operations that share a parameter are one anchor."""
    anchors: dict[fx.Node, Anchor] = {}
    followers: list[tuple[str, fx.Node]] = []
    norms = set()
    modules = dict(capture.root.named_modules())
    for node in capture.graph.nodes:
        target = str(node.target)
        if node.op == "call_module" and has_state(modules[target]):
            if is_norm(modules[target]):
                norms.add(target)
            if node not in flow:  # it computes with parameters and constants only
                followers += [(target, meeting) for meeting in _meetings(node, flow)[:1]]
            elif follows(modules[target]):
                followers.append((target, node))
            else:
                _add(anchors, node, target, target)
        elif node.op == "get_attr" and isinstance(_attribute(capture, target), nn.Parameter):
            meetings = _meetings(node, flow)
            for meeting in filter(_is_product, meetings):
                _add(anchors, meeting, target, target.rpartition(".")[0])
            followers += [(target, meeting) for meeting in meetings[:1]]  # where it acts first
    joined = _join(list(anchors.values()), capture)
    owned = {target for anchor in joined for target in anchor.targets}
    return Weights(joined, [(t, n) for t, n in followers if t not in owned], frozenset(norms))


def has_state(module: nn.Module) -> bool:
    """Whether the module has parameters or running statistics."""
    return any(True for _ in module.parameters()) or has_statistics(module)


def has_statistics(module: nn.Module) -> bool:
    """Whether a training pass changes its buffers (batch norm, or a closed module with one inside)."""
    return any("running_" in name or "num_batches" in name for name, _ in module.named_buffers())


def follows(module: nn.Module) -> bool:
    """Whether the module is a norm, a scale, or an activation: all its parameters are vectors."""
    if isinstance(module, OPERATIONS):
        return False
    return all(p.numel() == max(p.shape, default=1) for p in module.parameters())


def _attribute(capture: Capture, path: str) -> Any:
    return None if path in capture.constants else look_up(capture.root, path)


def _meetings(parameter: fx.Node, flow: Dataflow) -> list[fx.Node]:
    """The nodes where a parameter, or a value computed from parameters alone, meets an activation."""
    found, waiting, seen = [], [parameter], {parameter}
    while waiting:
        for reader in waiting.pop().users:
            if reader in seen:
                continue
            seen.add(reader)
            if reader in flow:
                found.append(reader)
            elif carries_tensors(reader):  # its values, not its shape
                waiting.append(reader)
    return sorted(found, key=flow.order.__getitem__)


def _is_product(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in PRODUCTS


def _add(anchors: dict[fx.Node, Anchor], node: fx.Node, target: str, name: str) -> None:
    anchor = anchors.setdefault(node, Anchor([node], name=name))
    if target not in anchor.targets:
        anchor.targets.append(target)


def _join(anchors: list[Anchor], capture: Capture) -> list[Anchor]:
    """Merge the anchors that share a module or a parameter."""
    users: dict[int, Anchor] = {}
    joined: list[Anchor] = []
    for anchor in anchors:
        tensors = [tensor for target in anchor.targets for tensor in tensors_of(capture.root, target)]
        same = {id(users[id(t)]): users[id(t)] for t in tensors if id(t) in users}
        if not same:
            joined.append(anchor)
            first = anchor
        else:
            first, *rest = same.values()
            for other in [*rest, anchor]:
                first.nodes += other.nodes
                first.targets += [target for target in other.targets if target not in first.targets]
                if other in joined:
                    joined.remove(other)
        for target in first.targets:
            users |= {id(tensor): first for tensor in tensors_of(capture.root, target)}
    return joined


def tensors_of(root: nn.Module, target: str) -> list[nn.Parameter]:
    """The parameters of a module, or the parameter itself, by its path."""
    found = look_up(root, target) if "." in target or hasattr(root, target) else root.get_submodule(target)
    return list(found.parameters()) if isinstance(found, nn.Module) else [found]
