"""The type checker that tests put behind every annotation of the package, shapes included.

jaxtyping's own hook does the same, but it binds every call to a signature, checks arguments twice and prepares every
function on import, nested ones each time that they are made. That was a third of the time of all tests. Here a function
is prepared when it is first called, and only one whose annotations hold shapes remembers shapes.
"""

from __future__ import annotations

import ast
import sys
from dataclasses import is_dataclass
from functools import partial, wraps
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder, SourceFileLoader
from importlib.util import cache_from_source
from inspect import isclass, isgeneratorfunction
from itertools import islice
from types import FunctionType, SimpleNamespace
from typing import Any, get_args, get_type_hints
from unittest.mock import patch

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError, jaxtyped
from torch import fx
from torch.fx._symbolic_trace import is_fx_tracing

# An int is a float, as for static checkers.
prepare = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeCheckError))


def install(package: str) -> None:
    """Checks the calls of all functions, methods and dataclasses of modules that are imported from now on."""
    sys.meta_path.insert(0, Finder(package))


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
        if checked is None:
            checked = prepared(made)
        if is_fx_tracing() and holds_proxy((args, kwargs)):  # a proxy is no tensor
            return made(*args, **kwargs)
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


class Finder(MetaPathFinder):
    def __init__(self, package: str):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] != self.package:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = Loader(spec.loader.name, spec.loader.path)
        return spec


class Loader(SourceFileLoader):
    def source_to_code(self, data, path, *, _optimize=-1):
        tree = Decorator().visit(ast.parse(data, path))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True, optimize=_optimize)

    def exec_module(self, module):
        module.__dict__["@check"] = check  # a name that no module can have
        # Compiled code with checks never takes the place of that without.
        tagged = partial(cache_from_source, optimization="checked1")
        with patch("importlib._bootstrap_external.cache_from_source", lambda path, **_: tagged(path)):
            super().exec_module(module)


class Decorator(ast.NodeTransformer):
    """Puts ``@check`` on functions, methods and classes; what a function defines inside is left alone."""

    def visit_FunctionDef(self, node):
        if not any(isinstance(name, ast.Name) and name.id == "no_type_check" for name in node.decorator_list):
            node.decorator_list.append(self._check(node))  # nearest: other decorators may hide the annotations
        return node

    def visit_ClassDef(self, node):
        node.decorator_list.insert(0, self._check(node))  # last: after @dataclass
        return self.generic_visit(node)

    @staticmethod
    def _check(node):
        return ast.copy_location(ast.Name("@check", ast.Load()), node)
