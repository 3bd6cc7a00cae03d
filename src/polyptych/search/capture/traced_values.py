"""Values that remember how they were computed, on which a module runs during capture.

A :class:`Traced` stands for a node of the graph and holds the node's value for the example image, so that shapes,
branches, and loops of the module's own Python code behave as in a real run. Whenever Python code turns a fact about a
shape into a plain number or a decision, a ``require`` node keeps that fact: the graph is correct wherever all hold.

Reference: torch.fx (Reed et al., MLSys 2022, arXiv 2112.08429), whose proxies hold no values.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx

STRUCTURE = frozenset({"ndim", "is_cuda", "is_cpu", "is_mps", "is_sparse", "is_quantized", "is_meta", "layout",
                       "requires_grad", "is_nested", "names"})
"""Attributes of a tensor that do not depend on its size."""
SHAPE = frozenset({"shape", "size", "numel", "nelement", "stride", "__len__", "dim", "ndimension", "dtype", "device",
                   "is_contiguous", "is_floating_point", "is_complex", "element_size", "itemsize", "nbytes", "type"})
PLACES = (torch.dtype, torch.device, torch.layout, torch.memory_format)


class Traced(fx.Proxy):
    """A node of the growing graph, and its value for the example."""

    def __init__(self, node: fx.Node, tracer: Any, value: Any):
        super().__init__(node, tracer)
        self.tracer: Any = tracer
        self.value = value
        self.item_of: tuple[weakref.ref[Traced], Any] | None = None  # the tensor that it is an item of, and its index

    def __repr__(self) -> str:
        return f"Traced({self.node.name})"

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tracer = next(find(args, kwargs or {})).tracer
        method = torch.overrides.is_tensor_method_or_property(function)
        target = function.__name__ if method else function
        if method and target == "__get__":  # a property, asked for through its descriptor
            target, args = "__getattribute__", (args[0], function.__self__.__name__)
        return tracer.create_proxy("call_method" if method else "call_function", target, tuple(args), kwargs or {})

    # -- attributes and items -----------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and not hasattr(type(self.value), name):
            raise AttributeError(name)  # protocols that the value does not have (arrays, pickling, ...)
        value = getattr(self.value, name)
        if isinstance(self.value, Tensor):
            if name in STRUCTURE or (name == "shape" and self.node.op == "get_attr"):
                return value
        elif isinstance(self.value, PLACES):
            return value
        if callable(value) and not isinstance(value, Tensor | torch.nn.Module):
            return Method(self, name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __setitem__(self, index: Any, item: Any) -> None:
        self.tracer.write_item(self, index, item)

    # -- decisions ----------------------------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        return bool(self.tracer.decide(self, bool))

    def __int__(self) -> int:
        return int(self.tracer.decide(self, int))

    def __index__(self) -> int:
        return int(self.tracer.decide(self, operator.index))

    def __float__(self) -> float:
        return float(self.tracer.decide(self, float))

    def __round__(self, digits: int | None = None) -> Any:
        return round(self.tracer.decide(self, None), digits)

    def __len__(self) -> int:
        return int(self.tracer.length(self))

    def __iter__(self) -> Iterator[Any]:
        return iter([self[i] for i in range(len(self))])  # type: ignore[index]

    def __contains__(self, item: Any) -> bool:
        return any(bool(item == own) for own in self)

    def __hash__(self) -> int:
        return hash(self.value) if isinstance(self.value, PLACES) else id(self)

    def __eq__(self, other: Any) -> Any:
        return self._compare(operator.eq, other)

    def __ne__(self, other: Any) -> Any:
        return self._compare(operator.ne, other)

    def _compare(self, how: Callable[[Any, Any], Any], other: Any) -> Any:
        if other is None or isinstance(self.value, PLACES):
            return how(self.value, concrete(other))
        return self.tracer.create_proxy("call_function", how, (self, other), {})


def _augmented(how: Callable[[Any, Any], Any]) -> Callable[[Traced, Any], Any]:
    return lambda self, other: self.tracer.create_proxy("call_function", how, (self, other), {})


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul", "iand", "ior", "ixor"):
    setattr(Traced, f"__{_name}__", _augmented(getattr(operator, _name)))


class Method:
    """A method of a traced value, not yet called."""

    def __init__(self, owner: Traced, name: str):
        self.owner, self.name = owner, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        owner = self.owner
        if isinstance(owner.value, Tensor):
            fixed = owner.node.op == "get_attr" and self.name in ("size", "numel", "nelement", "stride")
            if fixed or self.name in ("dim", "ndimension", "is_floating_point", "is_complex", "is_contiguous"):
                return getattr(owner.value, self.name)(*args, **kwargs)
        return owner.tracer.create_proxy("call_method", self.name, (owner, *args), kwargs)


def concrete(value: Any) -> Any:
    """The value with every traced part replaced by its value."""
    if isinstance(value, Traced):
        return value.value
    if isinstance(value, list | tuple):
        parts = [concrete(part) for part in value]
        if hasattr(value, "_fields"):
            return type(value)(*parts)
        return type(value)(parts) if type(value) in (list, tuple) else tuple(parts)
    if isinstance(value, dict):
        return {key: concrete(part) for key, part in value.items()}
    if isinstance(value, slice):
        return slice(concrete(value.start), concrete(value.stop), concrete(value.step))
    return value


def find(*values: Any) -> Iterator[Traced]:
    """All traced values inside the given values."""
    for value in values:
        if isinstance(value, Traced):
            yield value
        elif isinstance(value, list | tuple):
            yield from find(*value)
        elif isinstance(value, dict):
            yield from find(*value.values())
        elif isinstance(value, slice):
            yield from find(value.start, value.stop, value.step)
