"""Colors of classes by name: PASCAL VOC's palette, or a file such as CamVid's label_colors.txt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from polyptych.data.files import composed, read_text, spelled
from polyptych.datasets._folder.class_names import read_class_table
from polyptych.errors import InputError, nearest

_LINE = re.compile(r"(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})(?:[\s,]+(\S.*))?")


def with_colors(table: dict[str, Any], root: Path, where: str) -> dict[str, Any]:
    """The table, with ``colors = "voc"`` or ``colors = "label_colors.txt"`` replaced by the actual colors.

    A file has a color on each line, optionally with a name after it (``64 128 64 Animal``), or is a CSV table with the
    columns name, r, g and b. Lines without names are in the order of the classes; a table without ``classes`` takes
    them from the names.

    Raises:
        InputError: there is no such file, or it lacks the color of a class.
    """
    colors = table.get("colors")
    if not isinstance(colors, str):
        return table
    classes = table.get("classes", [])
    if colors == "voc":
        return {**table, "colors": [voc_color(index) for index in range(len(classes))]}
    path, needs = spelled(root / colors), "a text file with lines like `64 128 64 name`, or \"voc\""
    if not path.exists():
        raise InputError(f"{where}.colors", f"'{colors}', and no such file in {root}", needs, "check the name")
    if path.suffix.lower() == ".csv":
        columns = read_class_table(path)
        found = list(zip(columns.names, map(list, columns.colors), strict=False))
        return _by_name(table, found, path, where)
    lines = [line.strip() for line in read_text(path, needs).splitlines()]
    found = []
    for line in (line for line in lines if line and not line.startswith("#")):
        if not (match := _LINE.fullmatch(line)):
            raise InputError(path, repr(line[:100]), needs, "correct the line")
        *color, name = match.groups()
        found.append((composed(name or ""), [int(value) for value in color]))
    if not all(name for name, _ in found):
        return {**table, "colors": [color for _, color in found]}
    return _by_name(table, found, path, where)


def _by_name(table: dict[str, Any], found: list[tuple[str, list[int]]], path: Path, where: str) -> dict[str, Any]:
    named, classes = dict(found), table.get("classes", [])
    for name in classes:
        if name not in named:
            raise InputError(path, f"no color of '{name}'", nearest(str(name), named),
                             f"add it, or rename the class in {where}.classes")
    classes = classes or list(named)
    return {**table, "classes": classes, "colors": [named[name] for name in classes]}


def voc_color(index: int) -> list[int]:
    """The color of a class in PASCAL VOC's palette: the bits of its index, three at a time, fill red, green and blue
    from their highest bits downward."""
    color = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            color[channel] |= (index >> channel & 1) << (7 - bit)
        index >>= 3
    return color
