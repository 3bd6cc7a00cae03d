"""The package's files as syntax trees, parsed once for all tests that read them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import polyptych

ROOT = Path(polyptych.__file__).parent


@cache
def trees() -> dict[Path, ast.Module]:
    """By file; not to be changed."""
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}


@cache
def nodes(path: Path) -> list[ast.AST]:
    """All nodes of a file."""
    return [*ast.walk(trees()[path])]
