"""Temporary patches of Python and torch during tracing: an ``isinstance`` that looks at the traced value, constructors
that accept traced sizes, and a refusal of code that changes the precision or the gradient mode."""

from __future__ import annotations

import builtins
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from polyptych.search.capture.traced_values import Traced, concrete, find

CONSTRUCTORS = ("arange", "zeros", "ones", "full", "empty", "eye", "linspace", "rand", "randn", "tensor",
                "as_tensor", "is_tensor")


@contextlib.contextmanager
def value_aware_isinstance(root: nn.Module) -> Iterator[None]:
    """Make ``isinstance(traced, Tensor)`` look at the value, in the packages of the network's modules."""
    packages = {type(module).__module__.partition(".")[0] for module in root.modules()} - {"torch"}

    def value_aware(value: Any, kind: Any) -> bool:
        if builtins.isinstance(value, Traced) and kind is not Traced:
            return builtins.isinstance(value.value, kind)
        return builtins.isinstance(value, kind)

    own = __name__.removesuffix(".capture.patches")  # the search itself must tell a traced value from a real one
    spaces = [module.__dict__ for name, module in list(sys.modules.items())
              if name.partition(".")[0] in packages and not name.startswith(own) and module is not None
              and "isinstance" not in vars(module)]
    for space in spaces:
        space["isinstance"] = value_aware
    try:
        yield
    finally:
        for space in spaces:
            del space["isinstance"]


@contextlib.contextmanager
def traceable_constructors(is_computing: Callable[[], bool]) -> Iterator[None]:
    """Record ``torch.arange(traced)`` and the like as nodes, because torch does not dispatch on their numbers.

    Args:
        is_computing: whether values are being computed rather than traced.
    """
    originals = {name: getattr(torch, name) for name in CONSTRUCTORS}
    for name, original in originals.items():
        setattr(torch, name, _constructor(name, original, is_computing))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)


@contextlib.contextmanager
def modes_refused(refuse: Callable[[str], None]) -> Iterator[None]:
    """Keep traced code from changing the precision or the gradient mode, which a graph cannot express.

    Args:
        refuse: takes a description of what the code does, and raises during tracing.
    """
    gradient = (torch.no_grad, torch.enable_grad, torch.inference_mode)
    entered: dict[Any, str] = {torch.autocast: "precision", **dict.fromkeys(gradient, "gradient mode")}
    originals = {kind: kind.__enter__ for kind in entered}
    set_mode = torch.set_grad_enabled.__init__  # whose constructor already sets the mode

    def set_checked(self: Any, mode: bool) -> None:
        refuse("its code sets the gradient mode itself")
        set_mode(self, mode)

    torch.set_grad_enabled.__init__ = set_checked  # type: ignore[method-assign]
    for kind, what in entered.items():
        kind.__enter__ = _refusing(originals[kind], what, refuse)
    try:
        yield
    finally:
        for kind, original in originals.items():
            kind.__enter__ = original
        torch.set_grad_enabled.__init__ = set_mode  # type: ignore[method-assign]


def _refusing(enter: Any, what: str, refuse: Callable[[str], None]) -> Any:
    def checked(self: Any) -> Any:
        refuse(f"its code sets the {what} itself")
        return enter(self)

    return checked


def _constructor(name: str, original: Any, is_computing: Callable[[], bool]) -> Any:
    def construct(*args: Any, **kwargs: Any) -> Any:
        traced = None if is_computing() else next(find(args, kwargs), None)
        if traced is None:
            return original(*args, **kwargs)
        if name == "is_tensor":
            return isinstance(concrete(args[0]), Tensor)
        return traced.tracer.create_proxy("call_function", original, args, kwargs)

    return construct
