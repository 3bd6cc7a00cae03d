"""Names of classes from a file: a text, a JSON file, or a cell array of MATLAB."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from polyptych.data._matlab import load_mat
from polyptych.data.files import composed, read_json, read_text, spelled
from polyptych.errors import InputError

NEEDS = "a file with the name of every class"


def read_class_names(path: Path, where: str = "") -> tuple[str, ...]:
    """The names in the order of the classes: the lines of a text (empty ones and those that begin with # are left
    out), a list in JSON, or the one cell array of names in a .mat file.

    Args:
        where: the place that names the file, for messages.

    Raises:
        InputError: the file is missing or holds something else.
    """
    path = spelled(path)
    if where and not path.exists():
        raise InputError(where, f"'{path}', which does not exist", f"a list of names, or {NEEDS}",
                         "correct the name, or write the file: one name on each line")
    suffix = path.suffix.lower()
    if suffix == ".mat":
        names = _of_cells(load_mat(path, NEEDS), path)
    elif suffix == ".json":
        content: Any = read_json(path, NEEDS)
        if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
            raise InputError(path, "JSON of another form", "a list of names: [\"sky\", \"road\"]", "write it so")
        names = content
    else:
        lines = map(str.strip, read_text(path, NEEDS).splitlines())
        names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise InputError(path, "no name", NEEDS, "write one name on each line")
    return tuple(map(composed, names))


def _of_cells(variables: dict[str, Any], path: Path) -> list[str]:
    found = [names for value in variables.values() if (names := _texts(value))]
    if len(found) != 1:
        raise InputError(path, f"{len(found)} cell arrays of names", "exactly one", "write the names into a text file")
    return found[0]


def _texts(value: Any) -> list[str]:
    """The texts in an array of objects, each a text or an array that holds one; empty where it holds anything else."""
    if not isinstance(value, np.ndarray) or value.dtype != object:
        return []
    texts = []
    for cell in value.ravel(order="F"):
        text = cell.ravel()[0] if isinstance(cell, np.ndarray) and cell.size == 1 else cell
        if not isinstance(text, str):
            return []
        texts.append(text.strip())
    return texts
