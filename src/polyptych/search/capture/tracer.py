"""The tracer: runs a module on an example and records a pure graph of what it does.

Rules (tested on every family of timm):

- Layers of torch and their subclasses are leaves (:mod:`polyptych.search.capture.whole_modules`), and so are modules
  that cannot be opened.
- Every argument of ``forward`` except the image has its default.
- Tracing happens in evaluation mode; modules that read ``self.training`` and hold no layers are leaves, so that they
  stay random in training.
- Parameters and buffers are nodes, whatever Python code does with them.
- In-place operations become pure functions, and every name of the written value refers to the new one.
"""

from __future__ import annotations

import contextlib
import math
import operator
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from polyptych.search.capture.graph_functions import OPERATORS, filled, require, with_item
from polyptych.search.capture.node_values import depends_on_data, describe, tensors_in
from polyptych.search.capture.patches import modes_refused, traceable_constructors, value_aware_isinstance
from polyptych.search.capture.traced_values import Traced, concrete, find
from polyptych.search.capture.whole_modules import get_notrace_functions


class CannotOpen(Exception):
    """A module cannot be opened; ``place`` is its path and the reason is the message."""

    def __init__(self, place: str, reason: str):
        super().__init__(reason)
        self.place = place


class Tracer(fx.Tracer):
    """Traces one module once. ``constants`` are tensors that its code creates.

    Args:
        leaves: paths of modules to leave whole.
    """

    def __init__(self, leaves: frozenset[str]):
        super().__init__(autowrap_modules=(math,), autowrap_functions=tuple(get_notrace_functions()))
        self.leaves = leaves
        self.constants: dict[str, Tensor] = {}
        self.opened: dict[str, nn.Module] = {}
        self.outputs: list[Tensor] = []
        self._computing = 0
        self._names: dict[int, str] = {}
        self._attributes: dict[str, Traced] = {}
        self._decisions: set[tuple[fx.Node, Any]] = set()
        self._alive: dict[int, list[weakref.ref[Traced]]] = {}  # by storage, the values that view it
        self._image: Tensor = torch.empty(0)

    def run(self, root: nn.Module, leaf: Callable[[nn.Module], bool], image: Tensor) -> fx.Graph:
        """The graph of ``root(image)``; its output node holds the tensors of the result in order, and ``outputs`` their
        values for this image."""
        self._leaf, self._image = leaf, image
        # torch.fx must look for functions to wrap in every file that defines a module, before any module is called.
        homes = {type(module).__module__ for module in root.modules()}
        self._autowrap_search += [sys.modules[name] for name in sorted(homes) if name in sys.modules]
        # Names of parameters and buffers by identity: the modules' code passes them to functions as plain tensors, and
        # create_arg must recognize them.
        tensors = [*root.named_parameters(), *root.named_buffers()]
        self._names = {id(tensor): name for name, tensor in tensors}
        with (torch.no_grad(), value_aware_isinstance(root), modes_refused(self._refuse),
              traceable_constructors(lambda: self._computing > 0)):
            return self.trace(root)

    def _refuse(self, reason: str) -> None:
        if not self._computing:
            raise CannotOpen(self.scope.module_path, reason)

    # -- what torch.fx asks -------------------------------------------------------------------------------------------

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        def forward(root: nn.Module, image: Traced) -> Any:
            result = tuple(find_in_order(root_fn(root, image)))
            self.outputs = [concrete(x) for x in result]
            return result

        node = self.create_node("placeholder", "image", (), {})
        return forward, [self.root, self._remember(node, self._image)]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name in self.leaves or self._leaf(m)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self._computing:
            return forward(*args, **kwargs)
        try:
            path = self.path_of_module(m)
        except NameError:
            raise CannotOpen(self.scope.module_path, f"{type(m).__name__} is made while running") from None
        if not self.is_leaf_module(m, path):
            self.opened[path] = m
        if not any(True for _ in find(args, kwargs)):
            with self._untraced():  # of constants alone
                return forward(*args, **kwargs)
        try:
            result = super().call_module(m, forward, args, kwargs)
        except CannotOpen:
            raise
        except Exception as error:
            raise CannotOpen(path, first_line(error)) from error
        if self.is_leaf_module(m, path):
            self._run_hooks(m, args, kwargs, result)
        return result

    def _run_hooks(self, module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        """Show a leaf's hooks the traced values (timm collects features with hooks)."""
        for key, hook in list(module._forward_hooks.items()):
            seen = (args, kwargs, result) if key in module._forward_hooks_with_kwargs else (args, result)
            if hook(module, *seen) is not None:  # running the module will do it again
                raise CannotOpen(self.scope.module_path, f"a hook changes what {type(module).__name__} gives")

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if self._computing or not isinstance(attr_val, Tensor) or id(attr_val) not in self._names:
            return attr_val
        return self._attribute(self._names[id(attr_val)], attr_val)

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Traced):
            return a.node
        if isinstance(a, Tensor):
            if id(a) in self._names:
                return self._attribute(self._names[id(a)], a).node
            name = next((name for name, known in self.constants.items() if known is a), None)
            if name is None:
                name = f"_constant{len(self.constants)}"
                while hasattr(self.root, name):
                    name += "_"
                self.constants[name] = a.detach()
            return self._attribute(name, a).node
        if isinstance(a, torch.Size):
            return tuple(a)
        return super().create_arg(a)

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, name: Any = None, type_expr: Any = None
                    ) -> fx.Node:
        node = self.graph.create_node(kind, target, args, kwargs, name, type_expr)
        node.meta["place"] = self.scope.module_path
        return node

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, name: Any = None, type_expr: Any = None,
                     proxy_factory_fn: Any = None) -> Any:
        written = None
        if kind in ("call_function", "call_method"):
            kind, target, args, kwargs, written = self._pure(kind, target, args, kwargs)
        value, changed = self._compute(kind, target, concrete(args), concrete(kwargs))
        if changed:
            args, written = self._on_a_copy(target, args, kwargs, value, changed)
        node = self.create_node(kind, target, self.create_arg(tuple(args)), self.create_arg(dict(kwargs)), name)
        if written is None:
            traced = self._remember(node, value)
            if target is operator.getitem and isinstance(concrete(args[0]), Tensor) and isinstance(args[0], Traced):
                traced.item_of = weakref.ref(args[0]), args[1]
            return traced
        self._rewrite(written, node, value)
        return written

    # -- values -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _untraced(self) -> Iterator[None]:
        self._computing += 1
        try:
            yield
        finally:
            self._computing -= 1

    def _compute(self, kind: str, target: Any, args: Any, kwargs: Any) -> tuple[Any, list[Tensor]]:
        """The value, and the inputs that the call wrote to."""
        tensors = list(tensors_in((args, kwargs)))
        versions = [x._version for x in tensors]
        with self._untraced():
            if kind == "call_module":
                module = self.root.get_submodule(target)
                hooks, module._forward_hooks = module._forward_hooks, type(module._forward_hooks)()
                try:
                    value = module(*args, **kwargs)
                finally:
                    module._forward_hooks = hooks
            elif kind == "call_method":
                value = getattr(args[0], target)(*args[1:], **kwargs)
            else:
                value = target(*args, **kwargs)
        return value, [x for x, version in zip(tensors, versions, strict=True) if x._version != version]

    def _remember(self, node: fx.Node, value: Any) -> Traced:
        describe(node, value)
        traced = Traced(node, self, value)
        for tensor in tensors_in(value):
            self._alive.setdefault(_storage(tensor), []).append(weakref.ref(traced))
        return traced

    def _attribute(self, name: str, value: Tensor) -> Traced:
        if name not in self._attributes:
            with self._at_start():
                node = self.create_node("get_attr", name, (), {})
            self._attributes[name] = self._remember(node, value)
        return self._attributes[name]

    @contextlib.contextmanager
    def _at_start(self) -> Iterator[None]:
        # A module that a policy replaces may be the first to read a parameter, so parameters precede all other nodes.
        placeholder = next(iter(self.graph.nodes), None)
        if placeholder is None:
            yield
            return
        with self.graph.inserting_after(placeholder):
            yield

    # -- writing in place ---------------------------------------------------------------------------------------------

    def _pure(self, kind: str, target: Any, args: Any, kwargs: Any) -> tuple[str, Any, Any, Any, Traced | None]:
        """The call in its pure form, and the value that it would have written to."""
        if kind == "call_function" and target in OPERATORS:
            whole = isinstance(concrete(args[0]), Tensor) and isinstance(args[0], Traced)
            return kind, OPERATORS[target], args, kwargs, args[0] if whole else None
        if kind == "call_function" and kwargs.get("inplace") is True:
            return kind, target, args, {**kwargs, "inplace": False}, self._first(args, kwargs)
        name = target if kind == "call_method" else getattr(target, "__name__", "")
        is_tensor = bool(args) and isinstance(concrete(args[0]), Tensor)
        if not (is_tensor and isinstance(name, str) and name.endswith("_") and not name.endswith("__")):
            return kind, target, args, kwargs, None
        if name in ("copy_", "fill_", "zero_"):
            return "call_function", filled, (args[0], *(args[1:2] or (0,))), {}, args[0]
        pure = name[:-1]
        if kind == "call_method" and hasattr(Tensor, pure):
            return kind, pure, args, kwargs, args[0]
        function = getattr(torch, pure, None) or getattr(nn.functional, pure, None)
        if kind == "call_function" and function is not None:
            return kind, function, args, kwargs, self._first(args, kwargs)
        raise CannotOpen(self.scope.module_path, f"{name} has no form that does not write")

    def _on_a_copy(self, target: Any, args: Any, kwargs: Any, value: Any, changed: list[Tensor]
                   ) -> tuple[Any, Traced]:
        """The arguments of a function that writes to one of them and returns it, with a copy in that one's place."""
        written = [x for x in args if isinstance(x, Traced) and any(x.value is y for y in changed)]
        if len(changed) != 1 or len(written) != 1 or value is not changed[0]:
            raise CannotOpen(self.scope.module_path, f"{getattr(target, '__name__', target)} writes into its input")
        node = self.create_node("call_method", "clone", (written[0].node,), {})
        describe(node, value)
        copied = Traced(node, self, value)
        return tuple(copied if x is written[0] else x for x in args), written[0]

    @staticmethod
    def _first(args: Any, kwargs: Any) -> Traced | None:
        value = args[0] if args else kwargs.get("input")
        return value if isinstance(value, Traced) else None

    def write_item(self, values: Traced, index: Any, item: Any) -> None:
        """``values[index] = item``"""
        new = self.create_proxy("call_function", with_item, (values, index, item), {})
        self._rewrite(values, new.node, new.value)

    def _rewrite(self, written: Traced, node: fx.Node, value: Any) -> None:
        """Make every name of the written value refer to the new one.

        All names that Python code has for a value are one Traced object, so giving that object the new node updates
        them all. A view is another object on the same storage, which a pure graph cannot write through, so it would
        keep the old numbers. Hence code must not write to a value with live views; such a module stays whole. The
        exception is an item of a tensor (``x[i] += y``), which is written back to the tensor.
        """
        others = [x for x in (x() for x in self._alive.pop(_storage(written.value), ()))
                  if x is not None and x is not written]
        whole, index = (None, None) if written.item_of is None else (written.item_of[0](), written.item_of[1])
        if written.node.op in ("get_attr", "placeholder") or any(x is not whole for x in others):
            kind = {"get_attr": "a parameter or buffer", "placeholder": "the image"}.get(written.node.op)
            raise CannotOpen(self.scope.module_path, f"it writes into {kind or 'a tensor that has views'}")
        if whole is not None and others:  # an item of another tensor, which changes too
            self._alive[_storage(whole.value)] = [weakref.ref(whole)]
            self.write_item(whole, index, Traced(node, self, value))
            written.item_of = None
        describe(node, value)
        written.node, written.value = node, value
        self._alive.setdefault(_storage(value), []).append(weakref.ref(written))

    # -- decisions ----------------------------------------------------------------------------------------------------

    def decide(self, traced: Traced, kind: Callable[[Any], Any] | None) -> Any:
        """The plain value of a traced fact, with a check that it still holds when the graph runs.

        Python code turned the fact into a branch, a loop count, or a size, and the graph contains only what followed
        from its value for the example. ``require`` checks facts about shapes. Facts about the elements of a tensor
        differ from image to image, so a module that decides by them stays whole.
        """
        value = traced.value if kind is None else kind(traced.value)
        if isinstance(traced.value, Tensor) or depends_on_data(traced.node):
            raise CannotOpen(self.scope.module_path, "its Python code depends on values of a tensor")
        key = (traced.node, kind is bool)  # each fact is checked once, however often the code asks
        if key not in self._decisions:
            node = traced.node
            if kind is bool and not isinstance(traced.value, bool):
                node = self.create_node("call_function", bool, (node,), {})
                describe(node, bool(traced.value))
                expected: Any = bool(traced.value)
            else:
                expected = traced.value
            if isinstance(expected, bool | int | float):
                self._require(node, expected)
            self._decisions.add(key)
        return value

    def length(self, traced: Traced) -> int:
        count = len(traced.value)
        made_by_torch = traced.node.op == "call_method" or getattr(traced.node.target, "__module__", "") == "torch"
        if isinstance(traced.value, Tensor) or (made_by_torch and not isinstance(traced.value, torch.Size)):
            if isinstance(traced.value, Tensor) and traced.node.op == "get_attr":
                return count
            key = (traced.node, len)
            if key not in self._decisions:
                node = self.create_node("call_function", len, (traced.node,), {})
                describe(node, count)
                self._require(node, count)
                self._decisions.add(key)
        return count

    def _require(self, node: fx.Node, expected: Any) -> None:
        place = self.scope.module_path or type(self.root).__name__
        self.create_node("call_function", require, (node, expected, place), {})


def find_in_order(value: Any) -> Iterator[Any]:
    """The traced and constant tensors of a result, in the order of its structure."""
    if isinstance(value, Traced | Tensor):
        if isinstance(concrete(value), Tensor):
            yield value
        elif isinstance(concrete(value), list | tuple):
            for i in range(len(concrete(value))):
                yield from find_in_order(value[i])  # type: ignore[index]
    elif isinstance(value, list | tuple):
        for part in value:
            yield from find_in_order(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from find_in_order(part)
    elif hasattr(value, "maps"):
        yield from find_in_order(value.maps)


def _storage(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]
