"""Capture: any module as a pure graph of its layers, checked against the module bit for bit.

A module that cannot be opened becomes one node, with the reason; what is captured always equals the module, for every
size of image and any number of images, or says for which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from polyptych.backbones._base import Backbone
from polyptych.errors import InputError
from polyptych.search import tracer as tracing
from polyptych.search.leaves import OPERATIONS, has_random_drops, is_leaf, reads_training
from polyptych.search.pure import require
from polyptych.search.sizes import depends_on_size, replay
from polyptych.search.structure import Structure, take_apart

PROBE = 64  # pixels; the image that a network of any size is captured with is at least as large
LARGEST = 0.5  # of all parameters: a module with more is not closed for the sake of other sizes


@dataclass(frozen=True)
class Closed:
    """A module that is one node of the graph although it has layers inside.

    Attributes:
        path: of the module.
        kind: its class.
        reason: why it could not be opened.
        layers: convolutions and linear layers inside, which a policy cannot tell apart.
    """

    path: str
    kind: str
    reason: str
    layers: int


@dataclass(frozen=True, eq=False)
class Capture:
    """A network as a graph.

    Attributes:
        root: the network itself; nodes name its modules, parameters and buffers.
        graph: one placeholder (the image, b 3 h w), pure nodes, and the output: a tuple of tensors.
        structure: how the network's result is made of these tensors.
        constants: tensors that its code made from nothing, by the name of their nodes.
        shape: of the example image (b c h w).
        any_size: whether the graph was seen to hold for another size too.
        closed: modules that could not be opened.
        notes: what else a reader must know.
    """

    root: nn.Module
    graph: fx.Graph
    structure: Structure
    constants: Mapping[str, Tensor]
    shape: tuple[int, ...]
    any_size: bool
    closed: tuple[Closed, ...]
    notes: tuple[str, ...]

    def __call__(self, image: Float[Tensor, "b c h w"]) -> Any:
        """What the network gives, computed by the graph."""
        return self.structure.build(list(replay(self.graph, self.root, self.constants, image)))


def capture(root: nn.Module, *, size: tuple[int, int] | None = None, whole: Sequence[str] = (),
            any_size: bool = True) -> Capture:
    """Trace a network and check what came out.

    Modules' ``inplace`` flags are switched off and stay off. Everything else about the network stays as it is, its
    mode and buffers included.

    Args:
        root: takes an image (b 3 h w); returns a tensor, or lists, tuples, dicts or Features of tensors.
        size: height and width of the example image; by default small, or the size that the network wants.
        whole: patterns of paths (``blocks.*``) of modules to be left whole.
        any_size: whether modules whose structure depends on the size of the image (windows that are padded only
            where needed) stay whole, so that the graph holds for every size. Otherwise they are opened, and the graph
            checks that their decisions still hold.

    Raises:
        InputError: the network itself cannot be traced: its own ``forward`` does what no graph can.
    """
    for module in root.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    with as_found(root):
        root.eval()
        return _Attempts(root, whole, any_size).capture(*_examples(root, size))


class _Attempts:
    """Traces again, with one more module closed, until the graph equals the network."""

    def __init__(self, root: nn.Module, whole: Sequence[str], any_size: bool):
        self.root, self.want_any_size = root, any_size
        self.modules = dict(root.named_modules())
        self.total = sum(p.numel() for p in root.parameters()) or 1
        self.reasons = {path: "left whole as asked" for path in self.modules
                        if path and any(fnmatchcase(path, pattern) for pattern in whole)}
        self.notes: list[str] = []

    def capture(self, image: Tensor, other: Tensor, expected: list[Tensor], expected_other: list[Tensor],
                structure: Structure) -> Capture:
        resized = image.shape[-2:] != other.shape[-2:]
        while True:
            tracer = tracing.Tracer(frozenset(self.reasons))
            try:
                with as_found(self.root):
                    self.root.eval()
                    graph = tracer.run(self.root, lambda module: is_leaf(module) is not None, image)
            except tracing.Closed as failure:
                self._close(failure.place, str(failure))
                continue
            except Exception as error:
                raise self._refusal("", tracing._first_line(error)) from error
            random = [path for path, module in tracer.opened.items()
                      if path and reads_training(type(module)) and has_random_drops(module)]
            if random:
                for path in random:
                    self._close(path, "it drops at random in training by code of its own")
                continue
            remove_unused(graph)
            if self._hold_for_other_sizes(graph, tracer, image, other, expected_other):
                break
        if not same(tracer.outputs, expected):
            raise self._refusal("", "its result is another one each time")
        kept = [node for node in graph.nodes if node.target is require]
        if kept:
            places = sorted({node.args[2] for node in kept})
            self.notes.append(f"its structure is that for {image.shape[-2]}x{image.shape[-1]}, checked when it runs: "
                              + ", ".join(places))
        return Capture(self.root, graph, structure, tracer.constants, tuple(image.shape), resized and not kept,
                       tuple(self._closed(tracer)), tuple(self.notes))

    def _hold_for_other_sizes(self, graph: fx.Graph, tracer: tracing.Tracer, image: Tensor, other: Tensor,
                              expected: list[Tensor]) -> bool:
        """Whether the graph is final. Runs it on another size; what stands in the way is closed or checked for."""
        failed, outputs = None, list[Tensor]()
        shapes: dict[fx.Node, Any] = {}
        try:
            outputs = list(replay(graph, self.root, tracer.constants, other, shapes))
        except Exception as error:
            failed = tracing._first_line(error)
        if failed is not None:
            at = next(node for node in graph.nodes if node not in shapes)
            if self._may_close(at.meta["place"]):
                self._close(at.meta["place"], f"its structure depends on the size of the image ({failed})")
                return False
        depending = depends_on_size(graph, shapes)
        places = set()
        for node in [node for node in graph.nodes if node.target is require]:
            if node.args[0] not in depending and failed is None:
                graph.erase_node(node)
            elif self.want_any_size and self._may_close(node.meta["place"]):
                places.add(node.meta["place"])
        for place in places:
            if place not in self.reasons:  # closing one closes those of its class
                self._close(place, "its structure depends on the size of the image")
        if places:
            return False
        remove_unused(graph)
        if failed is not None or not same(outputs, expected):
            self._fix_size(graph, image)
        return True

    def _fix_size(self, graph: fx.Graph, image: Tensor) -> None:
        """Check the size of the image itself."""
        placeholder = next(iter(graph.nodes))
        with graph.inserting_after(placeholder):
            shape = graph.call_function(getattr, (placeholder, "shape"))
        with graph.inserting_after(shape):
            got = graph.call_function(tuple, (shape,))
        with graph.inserting_after(got):
            check = graph.call_function(require, (got, tuple(image.shape), "image"))
        for node in (shape, got, check):
            node.meta["place"] = ""
            tracing.describe(node, torch.Size(image.shape))

    def _may_close(self, path: str) -> bool:
        module = self.modules.get(path)
        if not path or module is None or path in self.reasons or is_leaf(module) is not None:
            return False
        return sum(p.numel() for p in module.parameters()) <= LARGEST * self.total

    def _close(self, path: str, reason: str) -> None:
        """The module, or the first around it that is not closed yet, and the others of its class."""
        while path and (path in self.reasons or is_leaf(self.modules[path]) is not None):
            path = path.rpartition(".")[0]
        if not path:
            raise self._refusal(path, reason)
        kind = type(self.modules[path])
        alike = {p for p, module in self.modules.items() if type(module) is kind and p and p not in self.reasons}
        chosen = alike if kind not in (nn.Sequential, nn.ModuleList) else {path}
        self.reasons |= dict.fromkeys(chosen, reason)

    def _refusal(self, path: str, reason: str) -> InputError:
        name = type(self.root).__name__
        return InputError(f"the network {name}", f"code at '{path or 'its own forward'}' that cannot be captured "
                          f"({reason})", "layers called one after the other, and arithmetic on tensors",
                          "name modules that shall stay whole (whole=['blocks.*']), or wrap the network in a module "
                          "whose forward only calls such modules")

    def _closed(self, tracer: tracing.Tracer) -> Iterator[Closed]:
        for node in tracer.graph.nodes:
            if node.op != "call_module":
                continue
            module = self.modules[str(node.target)]
            reason = self.reasons.get(str(node.target)) or is_leaf(module)
            layers = sum(isinstance(part, OPERATIONS) for part in module.modules())
            if reason and layers:
                yield Closed(str(node.target), type(module).__name__, reason, layers)


def remove_unused(graph: fx.Graph) -> None:
    """Delete nodes that nothing reads; checks stay."""
    for node in reversed(graph.nodes):
        asserts = node.op == "call_function" and node.target in (require, torch._assert)
        if not node.users and node.op not in ("placeholder", "output") and not asserts:
            graph.erase_node(node)


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Bit for bit; NaN equals NaN."""
    return len(one) == len(other) and all(
        x.shape == y.shape and x.dtype == y.dtype and bool(((x == y) | ((x != x) & (y != y))).all())
        for x, y in zip(one, other, strict=True))


@contextmanager
def as_found(root: nn.Module) -> Iterator[None]:
    """Leave all modules afterwards as they were: mode, attributes, what their code remembers."""
    found = [(module, {k: dict(v) if isinstance(v, dict) and k in ("_buffers", "_parameters") else v
                       for k, v in vars(module).items()}) for module in root.modules()]
    for module, _ in found:
        if getattr(module, "grad_checkpointing", False) is True:
            module.grad_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, attributes in found:
            vars(module).clear()
            vars(module).update(attributes)


@torch.no_grad()
def _examples(root: nn.Module, size: tuple[int, int] | None
              ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor], Structure]:
    """Two images that the network takes, of different sizes and numbers where it can, and what it gives for them."""
    steps = (32, 64)
    sizes: list[tuple[int, int]] = [size] if size is not None else [(PROBE, PROBE)]
    if size is None and isinstance(root, Backbone):
        side = root.multiple * math.ceil(PROBE / root.multiple)
        sizes, steps = [(side, side)], (root.multiple, 2 * root.multiple)
    elif size is None:
        native = (getattr(root, "pretrained_cfg", None) or {}).get("input_size", (3, 224, 224))
        sizes += [tuple(native[-2:]), (224, 224)]
    run = _runner(root)
    reason = ""
    for height, width in sizes:
        try:
            image = _image(root, 2, height, width)
            expected, structure = run(image)
        except InputError:
            raise
        except Exception as error:
            reason = tracing._first_line(error)
            continue
        try:
            other = _image(root, 1, height + steps[0], width + steps[1])
            expected_other, _ = run(other)
        except Exception:
            other = image[:1]
            expected_other, _ = run(other)
        return image, other, expected, expected_other, structure
    raise InputError(f"the network {type(root).__name__}", f"no result for images of {sizes} ({reason})",
                     "a network that takes one image (b 3 h w)", "say the size that it takes (size=(h, w))")


def _runner(root: nn.Module) -> Callable[[Tensor], tuple[list[Tensor], Structure]]:
    def run(image: Tensor) -> tuple[list[Tensor], Structure]:
        with as_found(root):
            root.eval()
            return take_apart(root(image))

    return run


def _image(root: nn.Module, batch: int, height: int, width: int) -> Tensor:
    reference = next((p for p in root.parameters() if p.is_floating_point()), torch.zeros(()))
    noise = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    return noise.to(reference.device, reference.dtype)
