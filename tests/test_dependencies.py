"""What the package imports is what pyproject.toml declares: nothing that another library happens to bring."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from package_sources import nodes, trees

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTIONAL = {"log", "cluster", "video", "export", "formats", "view"}  # the extras that add a function to the package


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\s<>=;\[!~]", text, maxsplit=1)[0].lower().replace("_", "-") for text in requirements}


def imported() -> dict[str, Path]:
    """Libraries that any file of the package imports, anywhere in it, and the first such file."""
    found: dict[str, Path] = {}
    for path in trees():
        for node in nodes(path):
            modules = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else \
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                found.setdefault((module or "").partition(".")[0], path.relative_to(ROOT))
    return {name: path for name, path in found.items()
            if name not in sys.stdlib_module_names and name not in ("polyptych", "tomli")}


def test_every_library_is_declared_and_every_declared_one_is_used() -> None:
    required = names(PROJECT["dependencies"])
    declared = required | {name for extra in OPTIONAL for name in names(PROJECT["optional-dependencies"][extra])}
    homes = packages_distributions()
    used = {library: {name.lower().replace("_", "-") for name in homes.get(library, [library])}
            for library in imported()}
    missing = {library: str(imported()[library]) for library, packages in used.items() if not packages & declared}
    assert not missing, "imported but not declared in pyproject.toml"
    unused = required - set().union(*used.values()) - {"tomli"}
    assert not unused, "declared but never imported"
