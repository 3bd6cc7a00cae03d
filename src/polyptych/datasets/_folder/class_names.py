"""Class names from a file: a text file, a CSV table, a JSON file, or a MATLAB cell array."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from polyptych.data._matlab import load_mat
from polyptych.data.files import composed, read_json, read_text, spelled
from polyptych.errors import InputError

NEEDS = "a file with the name of every class"


def read_class_names(path: Path, where: str = "") -> tuple[str, ...]:
    """The names in the order of the classes: the lines of a text file (without empty lines and comments with #), the
    column of names in a CSV table (:func:`read_class_table`), a list in JSON, or the one cell array of names in a .mat
    file.

    Args:
        where: the place that names the file, for messages.

    Raises:
        InputError: the file is missing or holds something else.
    """
    path = spelled(path)
    if where and not path.exists():
        raise InputError(where, f"'{path}', which does not exist", f"a list of names, or {NEEDS}",
                         "check the path, or write the file: one name on each line")
    suffix = path.suffix.lower()
    if suffix == ".mat":
        names = _of_cells(load_mat(path, NEEDS), path)
    elif suffix == ".csv":
        names = list(read_class_table(path).names)
    elif suffix == ".json":
        content: Any = read_json(path, NEEDS)
        if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
            raise InputError(path, "JSON of another form", "a list of names: [\"sky\", \"road\"]", "write such a list")
        names = content
    else:
        lines = map(str.strip, read_text(path, NEEDS).splitlines())
        names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise InputError(path, "no name", NEEDS, "write one name on each line")
    return tuple(map(composed, names))


@dataclass(frozen=True)
class ClassTable:
    """Classes as read from a CSV table.

    Attributes:
        ids: stored ids; empty if there is no such column.
        colors: red, green and blue, likewise.
    """

    names: tuple[str, ...]
    ids: tuple[int, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()


_NAME = ("name", "class", "class_name", "classname", "label", "label_name", "category")
_ID = ("id", "value", "index", "pixel", "class_id", "label_id", "pixel_value")
_COLOR = (("r", "red"), ("g", "green"), ("b", "blue"))


def read_class_table(path: Path) -> ClassTable:
    """Read a CSV file whose first line names its columns: ``name``, optionally ``id``, optionally ``r``, ``g`` and
    ``b``.

    Raises:
        InputError: it has no column of names, or a value in another column is not an integer.
    """
    lines = [line for line in csv.reader(io.StringIO(read_text(path, NEEDS)), skipinitialspace=True) if any(line)]
    columns = [column.strip().lower().replace(" ", "_") for column in lines[0]] if lines else []

    def place(names: Sequence[str]) -> int | None:
        return next((columns.index(name) for name in names if name in columns), None)

    if (name := place(_NAME)) is None:
        raise InputError(path, f"columns called {', '.join(columns) or 'nothing'}", "a column called name",
                         "name the columns in the first line: name, id, r, g, b")
    rows = lines[1:]
    try:
        ids = () if (number := place(_ID)) is None else tuple(int(row[number]) for row in rows)
        places = [place(names) for names in _COLOR]
        colors = () if None in places else tuple(
            (int(row[places[0]]), int(row[places[1]]), int(row[places[2]])) for row in rows)  # type: ignore[index]
        return ClassTable(tuple(composed(row[name].strip()) for row in rows), ids, colors)
    except (ValueError, IndexError):
        raise InputError(path, "a line without a number in each column of numbers",
                         "whole numbers under id, r, g and b", "fill in that line") from None


def _of_cells(variables: dict[str, Any], path: Path) -> list[str]:
    found = [names for value in variables.values() if (names := _texts(value))]
    if len(found) != 1:
        raise InputError(path, f"{len(found)} cell arrays of names", "exactly one", "write the names into a text file")
    return found[0]


def _texts(value: Any) -> list[str]:
    """The strings in an object array, each a string or an array that holds one; empty if it holds anything else."""
    if not isinstance(value, np.ndarray) or value.dtype != object:
        return []
    texts = []
    for cell in value.ravel(order="F"):
        text = cell.ravel()[0] if isinstance(cell, np.ndarray) and cell.size == 1 else cell
        if not isinstance(text, str):
            return []
        texts.append(text.strip())
    return texts
