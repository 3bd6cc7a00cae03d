"""Capture: any module as a pure graph of its layers, checked against the module bit for bit.

A module that cannot be opened becomes one node, with the reason. The graph always equals the module, for images of any
size and number, or says for which it does.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, fx, nn

from polyptych.errors import InputError
from polyptych.search.capture import tracer as tracing
from polyptych.search.capture import training_behavior as behavior
from polyptych.search.capture.examples import Examples, examples, in_evaluation, same
from polyptych.search.capture.graph_functions import require
from polyptych.search.capture.named_modules import chain
from polyptych.search.capture.node_values import carries_tensors, depends_on_size, describe, record
from polyptych.search.capture.replay import replay
from polyptych.search.capture.structure import Structure, take_apart
from polyptych.search.capture.whole_modules import OPERATIONS, has_random_drops, is_leaf, reads_training

LARGEST = 0.5  # share of all layers; a module with more stays open even if that fixes the image size


@dataclass(frozen=True)
class Closed:
    """A module that is one node of the graph although it contains layers.

    Attributes:
        path: path of the module.
        kind: name of its class.
        reason: why it could not be opened.
        layers: number of convolutions and linear layers inside, which a policy cannot treat separately.
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
        structure: how these tensors make up the network's result.
        constants: tensors that the network's code creates, by the name of their nodes.
        shape: shape of the example image (b c h w).
        any_size: whether the graph was shown to hold for another size, too.
        closed: modules that could not be opened.
        notes: what else a user must know.
    """

    root: nn.Module
    graph: fx.Graph
    structure: Structure
    constants: Mapping[str, Tensor]
    shape: tuple[int, ...]
    any_size: bool
    closed: tuple[Closed, ...]
    notes: tuple[str, ...]

    def remarks(self) -> list[str]:
        """What a user must know, line by line: which modules stay whole and why, and the notes."""
        groups: dict[tuple[str, str], list[Closed]] = {}
        for closed in self.closed:
            groups.setdefault((closed.kind, closed.reason), []).append(closed)
        lines = []
        for (kind, reason), members in groups.items():
            layers, places = sum(closed.layers for closed in members), len(members)
            lines.append(f"{kind} stays whole: {reason} ({layers} layer{'s' * (layers != 1)} in {places} "
                         f"module{'s' * (places != 1)}, from '{members[0].path}')")
        return [*lines, *self.notes]

    def __call__(self, image: Float[Tensor, "b c h w"]) -> Any:
        """The network's result, computed by the graph."""
        return self.structure.build(list(replay(self.graph, self.root, self.constants, image)))


def capture(root: nn.Module, *, size: tuple[int, int] | None = None, whole: Sequence[str] = (),
            any_size: bool = True) -> Capture:
    """Trace a network and check the graph.

    This switches off the modules' ``inplace`` flags for good. Everything else about the network stays as it is,
    including its mode and buffers.

    Args:
        root: takes an image (b 3 h w); returns a tensor, or lists, tuples, dicts or Features of tensors.
        size: height and width of the example image; by default small, or the size that the network requires.
        whole: patterns of paths (``blocks.*``) of modules to leave whole.
        any_size: whether modules whose structure depends on the image size (windows padded only when needed) stay
            whole, so that the graph holds for every size. Otherwise they are opened, and the graph checks that their
            decisions still hold.

    Raises:
        InputError: the network itself cannot be traced, because its own ``forward`` does what no graph can.
    """
    for module in root.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
    found = examples(root, size)
    try:
        return _Attempts(root, whole, any_size).capture(found)
    except InputError:
        if not whole:
            raise
    with in_evaluation(root):
        graph = chain(root, whole, found.image)
        for image, expected in ((found.image, found.expected), (found.other, found.expected_other)):
            if not same(replay(graph, root, {}, image), expected):
                raise InputError(f"the network {type(root).__name__}", "a result that differs from that of "
                                 "its named modules in sequence", "modules (whole=[...]) with no other operation "
                                 "between them", "name larger modules")
    paths = dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "call_module")
    closed = tuple(_closed(root.get_submodule(path), path, "left whole as asked") for path in paths)
    return Capture(root, graph, found.structure, {}, tuple(found.image.shape), found.resized, closed,
                   ("its own code could not be followed: it is its named modules in a row",))


class _Attempts:
    """Traces again and again, with more modules closed, until the graph equals the network."""

    def __init__(self, root: nn.Module, whole: Sequence[str], any_size: bool):
        self.root, self.want_any_size = root, any_size
        self.modules = dict(root.named_modules())
        self.total = _layers(root)
        self.remarks: list[str] = []
        self.reasons = {path: "left whole as asked" for path in self.modules
                        if path and any(fnmatchcase(path, pattern) for pattern in whole)}

    def capture(self, found: Examples) -> Capture:
        while True:
            tracer = tracing.Tracer(frozenset(self.reasons))
            try:
                with in_evaluation(self.root):
                    graph = tracer.run(self.root, lambda module: is_leaf(module) is not None, found.image)
            except tracing.CannotOpen as failure:
                self._close(failure.place, str(failure))
                continue
            except Exception as error:
                raise self._refusal("", tracing.first_line(error)) from error
            random = [path for path, module in tracer.opened.items()
                      if path and reads_training(type(module)) and has_random_drops(module)]
            if random:
                self._close_all(random, "it drops at random in training by code of its own")
                continue
            remove_unused(graph)
            with in_evaluation(self.root):
                if not self._holds_for_other_sizes(graph, tracer, found):
                    continue
            if self._learns_alike(graph, tracer, found):
                break
        if not same(tracer.outputs, found.expected):
            raise self._refusal("", "its result differs from run to run")
        if any(not carries_tensors(node) for node in graph.nodes if node.op.startswith("call")):
            with in_evaluation(self.root):
                self._record(graph, tracer, found)
        notes = list(self.remarks)
        kept = [node for node in graph.nodes if node.target is require]
        if kept:
            height, width = found.image.shape[-2:]
            notes.append(f"its structure is that for {height}x{width}, checked when it runs: "
                         + ", ".join(sorted({str(node.args[2]) for node in kept})))
        return Capture(self.root, graph, found.structure, tracer.constants, tuple(found.image.shape),
                       found.resized and not kept, tuple(self._report(graph)), tuple(notes))

    def _learns_alike(self, graph: fx.Graph, tracer: tracing.Tracer, found: Examples) -> bool:
        """Whether the graph does in training what the network does. Otherwise the modules responsible are closed; the
        network's own code cannot be, so a remark says what differs."""
        self.remarks = []
        if reads_training(type(self.root)):
            self.remarks.append("its own code asks for self.training; captured is what it does in evaluation")
        try:
            modes, reasons = {}, dict[str, str]()
            for training in (False, True):
                with in_evaluation(self.root, training), behavior.random_numbers_kept():
                    modes[training] = behavior.watch(self.root, tracer.opened, found.image, training)
            with in_evaluation(self.root), behavior.random_numbers_kept():  # as the graph was traced
                traced = behavior.watch(self.root, tracer.opened, found.image, training=False, gradients=False)
            reasons |= dict.fromkeys(modes[True].drawing, behavior.DRAWS)
            for path in modes[True].called:
                if modes[True].called[path] != modes[False].called[path]:
                    reasons[path] = behavior.MODE
                elif modes[False].called[path] != traced.called[path] and path not in modes[True].hooked:
                    reasons[path] = behavior.GRADIENTS
            reasons |= dict.fromkeys(modes[True].switching, behavior.SWITCHES)
            reasons |= dict.fromkeys(behavior.hooked_modules(tracer.opened), behavior.HOOKS)
            if reasons.pop("", "") and not self.remarks:
                self.remarks.append("its own code does otherwise in training; captured is what it does in evaluation")
            # Only a function with its own backward, or a hook, can make the gradients of the graph differ. Many such
            # functions only save memory (timm's activations); their modules stay open if the gradients agree.
            suspects = dict.fromkeys(modes[True].own_backward, behavior.BACKWARD) | dict.fromkeys(
                modes[True].hooked, behavior.HOOKS)
            if not reasons and suspects and not self._same_gradients(graph, tracer, found):
                reasons = suspects
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError, AttributeError) as error:
            self.remarks.append(f"its training could not be compared ({tracing.first_line(error)})")
            return True
        for path, reason in reasons.items():
            self._close_all([path], reason)
        return not reasons

    def _same_gradients(self, graph: fx.Graph, tracer: tracing.Tracer, found: Examples) -> bool:
        runs: tuple[Callable[[Tensor], list[Tensor]], ...] = (
            lambda image: take_apart(self.root(image))[0],
            lambda image: list(replay(graph, self.root, tracer.constants, image, gradients=True)))
        results = []
        for run in runs:
            with in_evaluation(self.root, training=True), behavior.random_numbers_kept():
                results.append(behavior.gradients(run, self.root, found.image))
        return len(results[0]) == len(results[1]) and behavior.agree(*results)

    def _record(self, graph: fx.Graph, tracer: tracing.Tracer, found: Examples) -> None:
        """Record values for the examples and, if the graph takes it, for an image whose size no stride divides. There,
        values differ that are equal for even sizes, such as a half rounded up and a half rounded down."""
        height, width = found.image.shape[-2:]
        odd = found.image.new_zeros(3, found.image.shape[1], height + 45, width + 23)
        runs = []
        for image in (found.image, found.other, odd):
            run: dict[fx.Node, Any] = {}
            try:
                replay(graph, self.root, tracer.constants, image, plain=run)
            except Exception:
                continue  # a network of one size
            runs.append(run)
        record(graph, runs)

    def _holds_for_other_sizes(self, graph: fx.Graph, tracer: tracing.Tracer, found: Examples) -> bool:
        """Run the graph on another size, and close or check the modules whose structure depends on the size.

        Returns:
            Whether the graph is final; if not, modules were closed.
        """
        failed, outputs = None, list[Tensor]()
        shapes: dict[fx.Node, Any] = {}
        try:
            outputs = list(replay(graph, self.root, tracer.constants, found.other, shapes))
        except Exception as error:
            failed = tracing.first_line(error)
        if failed is not None:
            at = next(node for node in graph.nodes if node not in shapes)
            if self._may_close(at.meta["place"]):
                self._close(at.meta["place"], f"its structure depends on the size of the image ({failed})")
                return False
        depending = depends_on_size(graph, shapes)
        places = []
        for node in [node for node in graph.nodes if node.target is require]:
            if node.args[0] not in depending and failed is None:
                graph.erase_node(node)
            elif self.want_any_size and self._may_close(node.meta["place"]):
                places.append(node.meta["place"])
        if places:
            self._close_all(places, "its structure depends on the size of the image")
            return False
        remove_unused(graph)
        if failed is not None or not same(outputs, found.expected_other):
            _fix_size(graph, found.image, self._takes_any_number(graph, tracer, found))
        return True

    def _takes_any_number(self, graph: fx.Graph, tracer: tracing.Tracer, found: Examples) -> bool:
        """Whether the graph, which holds for one size only, holds for another number of images."""
        try:
            outputs = replay(graph, self.root, tracer.constants, found.image[:1])
        except Exception:
            return False
        return same(outputs, take_apart(self.root(found.image[:1]))[0])

    def _may_close(self, path: str) -> bool:
        module = self.modules.get(path)
        if not path or module is None or path in self.reasons or is_leaf(module) is not None:
            return False
        return _layers(module) <= LARGEST * self.total

    def _close_all(self, paths: Sequence[str], reason: str) -> None:
        for path in paths:
            if path not in self.reasons:  # closing one closes those of its class
                self._close(path, reason)

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
                          "name modules to keep whole (whole=['blocks.*']), or wrap the network in a module "
                          "whose forward only calls such modules")

    def _report(self, graph: fx.Graph) -> Iterator[Closed]:
        for path in dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "call_module"):
            report = _closed(self.modules[path], path, self.reasons.get(path) or is_leaf(self.modules[path]) or "")
            if report.reason and report.layers:
                yield report


def _closed(module: nn.Module, path: str, reason: str) -> Closed:
    return Closed(path, type(module).__name__, reason, _layers(module))


def _layers(module: nn.Module) -> int:
    compiled = {kind.__name__ for kind in (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d)}
    return sum(isinstance(part, OPERATIONS) or getattr(part, "original_name", "") in compiled  # of TorchScript
               for part in module.modules())


def _fix_size(graph: fx.Graph, image: Tensor, any_number: bool) -> None:
    """Let the graph check the size, or the whole shape, of the image itself."""
    first = 2 if any_number else 0
    placeholder = next(iter(graph.nodes))
    with graph.inserting_after(placeholder):
        shape = graph.call_function(getattr, (placeholder, "shape"))
    with graph.inserting_after(shape):
        got = graph.call_function(operator.getitem, (shape, slice(first, None)))
    with graph.inserting_after(got):
        check = graph.call_function(require, (got, tuple(image.shape[first:]), "image"))
    for node in (shape, got, check):
        node.meta["place"] = ""
        describe(node, image.shape[first if node is got else 0:])


def remove_unused(graph: fx.Graph) -> None:
    """Delete nodes that nothing reads; checks stay."""
    for node in reversed(graph.nodes):
        asserts = node.op == "call_function" and node.target in (require, torch._assert)
        if not node.users and node.op not in ("placeholder", "output") and not asserts:
            graph.erase_node(node)
