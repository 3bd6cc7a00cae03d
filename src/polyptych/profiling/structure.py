"""Where the parameters of a network are, which tasks use them, and its tree of modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from polyptych.backbones._base import Backbone
from polyptych.decoders._blocks import Head
from polyptych.types import Output

PARTS = ("backbone", "encoder", "decoder", "heads", "other")


@dataclass(frozen=True)
class Part:
    """Parameters and multiply-adds per image of one part of a network."""

    name: str
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Sharing:
    """Parameters by the tasks whose final prediction they influence.

    Attributes:
        shared: parameters that influence all tasks, if there are several.
        partly: those that influence several tasks, but not all.
        private: those that influence one task alone; an entry per task.
        auxiliary: those that influence only auxiliary predictions: needed in training, unused afterwards.
        unused: those that influence no prediction.
    """

    shared: int
    partly: int
    private: dict[str, int]
    auxiliary: int
    unused: int


@dataclass(frozen=True)
class Node:
    """A module and what is in it. A parameter that two children share counts in both, and once in their parent."""

    name: str
    type: str
    parameters: int
    multiply_adds: int
    children: tuple[Node, ...]


def parts(network: nn.Module, multiply_adds: dict[str, int]) -> tuple[Part, ...]:
    """The network by its parts.

    ``backbone`` is every :class:`Backbone` wherever it is; ``heads`` is every :class:`Head` and everything under an
    attribute called ``heads``; ``encoder`` and ``decoder`` are the rest under these two attributes of the network.

    Args:
        multiply_adds: by the path of the module, without those of its children.
    """
    belongs = _belongs(network)
    parameters: Counter[str] = Counter()
    for path, parameter in network.named_parameters():  # a shared one comes once
        parameters[belongs[path.rpartition(".")[0]]] += parameter.numel()
    work: Counter[str] = Counter()
    for path, number in multiply_adds.items():
        work[belongs[path]] += number
    return tuple(Part(name, parameters[name], work[name])
                 for name in PARTS if name != "other" or parameters[name] or work[name])


def _belongs(network: nn.Module) -> dict[str, str]:
    """The part that each module (by path) belongs to; a module follows its parent unless it says otherwise."""
    belongs = {"": "other"}
    for path, module in network.named_modules():
        parent, _, name = path.rpartition(".")
        if not path or belongs[parent] in ("backbone", "heads"):
            belongs[path] = belongs[parent]
        elif isinstance(module, Backbone):
            belongs[path] = "backbone"
        elif isinstance(module, Head) or name == "heads":
            belongs[path] = "heads"
        else:
            belongs[path] = name if path in ("encoder", "decoder") else belongs[parent]
    return belongs


def sharing(parameters: Iterable[nn.Parameter], output: Output) -> Sharing:
    """Parameters by the tasks that use them: a task uses the parameters that the autograd graph reaches from its
    prediction.

    Args:
        parameters: all of them; each must have required gradients when ``output`` was made.
    """
    reached = {task: {id(leaf) for leaf in _leaves(prediction)} for task, prediction in output.final.items()}
    auxiliary = {id(leaf) for extra in output.auxiliary for x in extra.prediction.values() for leaf in _leaves(x)}
    private = dict.fromkeys(reached, 0)
    numbers: Counter[str] = Counter()
    for parameter in parameters:
        users = [task for task, leaves in reached.items() if id(parameter) in leaves]
        if len(users) == 1:
            private[users[0]] += parameter.numel()
        elif users:
            numbers["shared" if len(users) == len(reached) else "partly"] += parameter.numel()
        else:
            numbers["auxiliary" if id(parameter) in auxiliary else "unused"] += parameter.numel()
    return Sharing(numbers["shared"], numbers["partly"], private, numbers["auxiliary"], numbers["unused"])


def _leaves(prediction: Tensor) -> Iterator[Tensor]:
    """The leaves of the graph that made a tensor."""
    waiting, seen = [prediction.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [below for below, _ in node.next_functions]


def tree(network: nn.Module, multiply_adds: dict[str, int], depth: int) -> Node:
    """The modules down to a depth, in their order; those with neither parameters nor multiply-adds are left out.

    Args:
        multiply_adds: by the path of the module, without those of its children.
    """
    total: Counter[str] = Counter()
    for path, number in multiply_adds.items():
        names = path.split(".") if path else []
        for end in range(len(names) + 1):
            total[".".join(names[:end])] += number

    def node(path: str, name: str, module: nn.Module, below: int) -> Node:
        children = [node(f"{path}.{key}" if path else key, key, child, below - 1)
                    for key, child in module.named_children()] if below else []
        return Node(name, type(module).__name__, sum(p.numel() for p in module.parameters()), total[path],
                    tuple(child for child in children if child.parameters or child.multiply_adds))

    return node("", "network", network, depth)
