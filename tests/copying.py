"""Copies of folders that tests change."""

from __future__ import annotations

import shutil
from pathlib import Path


def copied(source: Path, target: Path) -> Path:
    """A copy without times and rights, which take most of the time of a copy of small files."""
    return shutil.copytree(source, target, copy_function=shutil.copyfile)
