"""Every key of ``dataset.toml`` with its type, default and meaning, read from the classes that decode the file."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from polyptych.datasets._folder.derived import DERIVED, InstanceBoundaries
from polyptych.datasets._folder.description import KINDS, Contents
from polyptych.datasets._folder.splits import Splits

_WORDS = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "RGB": "[red, green, blue]",
          "Members": "text, share or list of texts", "dict[str, dict[str, Any]]": "tables", "Splits": "table"}


@dataclass(frozen=True)
class Key:
    """One key of a table.

    Attributes:
        kind: description of its values.
        default: default value as TOML; empty if the key is required.
    """

    name: str
    kind: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Section:
    """The keys of one table of the file."""

    title: str
    about: str
    keys: tuple[Key, ...]


def sections() -> list[Section]:
    """All tables: the file itself, ``[splits]``, and ``[tasks.NAME]`` for each kind of label."""
    found = [Section("the file", "Keys before all tables.", tuple(_keys(Contents))),
             Section("[splits]", "", tuple(_keys(Splits)))]
    for labels in dict.fromkeys(KINDS.values()):
        kinds = [kind for kind, each in KINDS.items() if each is labels]
        found.append(Section(f"[tasks.NAME] of the kind {' or '.join(kinds)}", _about(labels), tuple(_keys(labels))))
    for kind, derived in DERIVED.items():
        origin = Key("from", "text", "", f"Task of the same file, of the kind {' or '.join(derived.sources)}.")
        found.append(Section(f"[tasks.NAME] of the kind {kind}, with from", _about(derived),
                             (origin, *_keys(derived))))
    origin = Key("from", "`instances`", "", "These labels are derived from instance maps.")
    found.append(Section("[tasks.NAME] of the kind boundaries, with from = \"instances\"", _about(InstanceBoundaries),
                         (origin, *_keys(InstanceBoundaries))))
    return found


def _about(kind: Any) -> str:
    """The docstring of a class, without its markup."""
    text = " ".join((inspect.getdoc(kind) or "").split())
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text).replace("``", "`")


def markdown() -> str:
    """The reference as shown in the documentation."""
    parts = []
    for section in sections():
        parts += [f"### {section.title[0].upper()}{section.title[1:]}", ""]
        parts += [section.about, ""] if section.about else []
        parts += ["| key | values | default | meaning |", "|---|---|---|---|"]
        for key in section.keys:
            default = f"`{_cell(key.default)}`" if key.default else "required"
            parts.append(f"| `{key.name}` | {_cell(key.kind)} | {default} | {_cell(key.meaning)} |")
        parts.append("")
    return "\n".join(parts).rstrip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _keys(kind: Any) -> Iterator[Key]:
    meanings = _meanings(kind)
    for field in dataclasses.fields(kind):
        value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        default = "" if value is dataclasses.MISSING else _toml(value)
        yield Key(field.name, _in_words(str(field.type)), default, meanings.get(field.name, ""))


def _toml(value: Any) -> str:
    if value is None:
        return "nothing"
    if dataclasses.is_dataclass(value):
        return "its defaults"
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _meanings(kind: Any) -> dict[str, str]:
    """The docstring under each field of the class and its base classes."""
    found: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if "__dataclass_fields__" not in vars(owner):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)
                    and isinstance(text.value, ast.Constant)):
                found[field.target.id] = " ".join(str(text.value.value).split()).replace("``", "`")
    return found


def _in_words(kind: str) -> str:
    kind = kind.replace(" | None", "")
    if kind in _WORDS:
        return _WORDS[kind]
    if literal := re.fullmatch(r"Literal\[(.*)\]", kind):
        return literal[1].replace('"', "`").replace("'", "`")
    if sequence := re.fullmatch(r"tuple\[(.*), \.\.\.\]", kind):
        return f"list, each {_in_words(sequence[1])}"
    if pair := re.fullmatch(r"tuple\[(.*)\]", kind):
        return f"[{', '.join(_in_words(part) for part in pair[1].split(', '))}]"
    if " | " in kind:
        return " or ".join(_in_words(part) for part in kind.split(" | "))
    return kind
