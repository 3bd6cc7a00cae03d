"""Puts the checks of ``typechecking.py`` on whatever the tests import of a package."""

from __future__ import annotations

import ast
import sys
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder, SourceFileLoader
from importlib.util import cache_from_source
from unittest.mock import patch


def install(package: str) -> None:
    """Checks the calls of all functions, methods and dataclasses of modules that are imported from now on."""
    sys.meta_path.insert(0, Finder(package))


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
        from typechecking import check  # with torch and more, which the process that only hands out tests never needs

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
