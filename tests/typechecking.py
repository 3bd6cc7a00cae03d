"""The type checker that tests put behind every annotation of the package, shapes included.

jaxtyping's own hook does the same, but it binds every call to a signature, checks arguments twice and prepares every
function on import, nested ones each time that they are made. That was a third of the time of all tests. Here a function
is prepared when it is first called, and only one whose annotations hold shapes remembers shapes. ``check_imports.py``
puts it there.
"""

from __future__ import annotations

from dataclasses import is_dataclass
from functools import wraps
from inspect import isclass, isgeneratorfunction
from itertools import islice
from types import FunctionType, SimpleNamespace
from typing import Any, get_args, get_type_hints

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError, config, jaxtyped
from torch import fx
from torch.fx import _symbolic_trace

# The public function warns, and asks at every call whether it has warned.
is_fx_tracing = getattr(_symbolic_trace, "_get_is_fx_tracing", _symbolic_trace.is_fx_tracing)
# An int is a float, as for static checkers.
prepare = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeCheckError))


def check(made):
    """The same function or class, which checks every call but those of a network that is being captured."""
    if isclass(made):
        if is_dataclass(made) and "__init__" in vars(made):
            made.__init__ = check(made.__init__)
        return made
    checked = None

    @wraps(made)
    def call(*args, **kwargs):
        nonlocal checked
        if config.jaxtyping_disable or (is_fx_tracing() and holds_proxy((args, kwargs))):  # a proxy is no tensor
            return made(*args, **kwargs)
        if checked is None:
            checked = prepared(made)
        return checked(*args, **kwargs)

    return call


def prepared(function):
    hints = {name: resolved(hint, function.__globals__) for name, hint in function.__annotations__.items()}
    if isgeneratorfunction(function):
        hints.pop("return", None)  # what it yields is looked at when the shapes of its arguments are forgotten
    same = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__,
                        function.__closure__)
    same.__kwdefaults__, same.__module__, same.__qualname__ = (
        function.__kwdefaults__, function.__module__, function.__qualname__)
    same.__annotations__ = hints
    checked = prepare(same)
    if not any(map(holds_shape, hints.values())):
        return checked

    def call(*args, **kwargs):
        with jaxtyped("context"):  # the letters of a shape have one meaning in one call
            return checked(*args, **kwargs)

    return call


def resolved(hint, names: dict[str, Any]):
    try:
        return get_type_hints(SimpleNamespace(__annotations__={"it": hint}), names, include_extras=True)["it"]
    except Exception:  # a name that only static checkers see
        return Any


def holds_shape(hint) -> bool:
    return (isclass(hint) and issubclass(hint, AbstractArray)) or any(map(holds_shape, get_args(hint)))


def holds_proxy(value, depth=3) -> bool:
    """Whether there is one among the first parts of the value, or of its parts."""
    if isinstance(value, fx.Proxy):
        return True
    if isinstance(value, dict):
        value = value.values()
    elif hasattr(value, "maps"):
        value = value.maps
    elif not isinstance(value, list | tuple):
        return False
    return depth > 0 and any(holds_proxy(part, depth - 1) for part in islice(value, 8))
