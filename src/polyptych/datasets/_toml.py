"""Reading the TOML files in which users describe data."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, TypeVar

from polyptych.data.files import read_text
from polyptych.errors import InputError
from polyptych.record import decode

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Contents = TypeVar("Contents")


def decode_toml(kind: type[Contents], tables: dict[str, Any], path: Path) -> Contents:
    """The tables as a dataclass, checked field by field (:func:`polyptych.record.decode`).

    Raises:
        InputError: an entry is wrong; the message names the file and the entry.
    """
    try:
        return decode(kind, tables, "")
    except InputError as error:
        raise InputError(f"{path}: {error.where.lstrip('.')}", error.got, error.needs, error.do) from None


def read_toml(path: Path, needs: str) -> dict[str, Any]:
    """The tables of a TOML file.

    Args:
        needs: what the file must be, for messages.

    Raises:
        InputError: it is missing or is not TOML; the message names the line.
    """
    if not path.exists():
        raise InputError(path, "no such file", needs, "write it, or check the path")
    text = read_text(path, needs)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # wrong syntax, or integers with thousands of digits
        said = " ".join(str(error).split())
        do = ("write / in paths, also on Windows" if "'\\'" in said or "escape" in said.lower() else
              "correct the syntax there")
        raise InputError(path, f"a file that is not TOML ({said})", needs, do) from None
