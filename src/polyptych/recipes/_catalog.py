"""Recipes by name: every public function of every file of this folder."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from polyptych.component import Summary
from polyptych.errors import InputError, nearest

if TYPE_CHECKING:
    from polyptych.run import Run


def names() -> list[str]:
    """Every recipe, read from the sources without importing them."""
    return sorted(_functions())


def load(name: str) -> Callable[[], Run]:
    """Import the file that holds a recipe and return its function.

    Raises:
        InputError: no such recipe; the message lists the nearest names.
    """
    functions = _functions()
    if name not in functions:
        raise InputError(f"recipe '{name}'", "an unknown name", nearest(name, functions),
                         "see `polyptych list recipes`")
    return getattr(importlib.import_module(f"{__package__}.{functions[name][0]}"), name)


def descriptions() -> list[Summary]:
    """First docstring line of every recipe."""
    return [Summary(name, text.partition("\n")[0], "") for name, (_, text) in sorted(_functions().items())]


@cache  # a command asks for names and functions, and the sources do not change while it runs
def _functions() -> dict[str, tuple[str, str]]:
    """``{recipe: (file stem, docstring)}``"""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                found[node.name] = (path.stem, ast.get_docstring(node) or "")
    return found
