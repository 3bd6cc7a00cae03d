"""Configs to plain JSON and back, strictly: a wrong type or an unknown name is refused, and the message names the
place."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import sys
import time
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from polyptych.component import Component
from polyptych.errors import InputError, nearest

TRIES, BETWEEN_TRIES = 20, 0.1  # attempts to replace a file that is being read; seconds


def encode(value: Any, spell: Callable[[Path], str] = str) -> Any:
    """A Config, or anything made of dataclasses and plain values, as JSON-ready data. A component is written as its
    ``name`` and its options; ``spell`` writes paths."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {"name": value.name} if isinstance(value, Component.Config) else {}
        return named | {f.name: encode(getattr(value, f.name), spell) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: encode(item, spell) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [encode(item, spell) for item in value]
    return spell(value) if isinstance(value, Path) else value


def decode(kind: Any, value: Any, where: str) -> Any:
    """The inverse of :func:`encode`: data that claims to be a ``kind``, checked field by field.

    Args:
        kind: the expected type; for a component the base ``Config`` of its family.
        where: the place for error messages, for instance ``run.json``.

    Raises:
        InputError: a field is unknown, missing, or of the wrong type; the message names it and what is needed.
    """
    if isinstance(kind, type) and issubclass(kind, Component.Config):
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise InputError(where, repr(value), f"an object with the \"name\" of a {kind.catalog.kind}", "add it")
        return _fields(kind.catalog.load(value["name"]).Config, {k: v for k, v in value.items() if k != "name"}, where)
    if dataclasses.is_dataclass(kind):
        return _fields(typing.cast(type, kind), value, where)
    if typing.get_origin(kind) is dict and dataclasses.is_dataclass(typing.get_args(kind)[1]):
        if not isinstance(value, dict):
            raise InputError(where, repr(value), "an object", "write one, with a value for each name")
        return {key: decode(typing.get_args(kind)[1], item, f"{where}.{key}") for key, item in value.items()}
    try:
        return msgspec.convert(value, kind, dec_hook=lambda to, item: to(item))
    except (msgspec.ValidationError, TypeError) as error:
        inside = re.search(r"at `\$(.+)`", str(error))  # the entry of a list that is wrong
        do = "choose one" if typing.get_origin(kind) is typing.Literal else "write a value of this type"
        raise InputError(f"{where}{inside[1]}" if inside else where, repr(value), _in_words(kind), do) from None


_WORDS: Mapping[Any, str] = {str: "text", int: "a whole number", float: "a number", bool: "true or false",
                             Path: "a path", type(None): "nothing"}


def _in_words(kind: Any) -> str:
    """How a message describes the values of a type."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_in_words, parts))
    if origin is tuple:
        entries = [_in_words(part) for part in parts if part is not Ellipsis]
        alike = f", each {entries[0]}" if len(set(entries)) == 1 else f": {', '.join(entries)}"
        return f"a list, each entry {entries[0]}" if Ellipsis in parts else f"a list of {len(entries)}{alike}"
    if origin in (dict, Mapping):
        return f"a table, each entry {_in_words(parts[1])}"
    return _WORDS.get(kind) or str(getattr(kind, "__name__", kind))


@cache
def _hints(kind: type) -> dict[str, Any]:
    """The types of a dataclass's fields. Python parses their texts again at each call."""
    return typing.get_type_hints(kind)


def _fields(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise InputError(where, repr(value), "an object", "write one, with a value for each name")
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    hints = _hints(kind)
    for name in value:
        if name not in fields:
            raise InputError(f"{where}.{name}", "an unknown field", nearest(name, fields),
                             "rename or remove it")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise InputError(f"{where}.{name}", "nothing", "a value", "add it")
    return kind(**{name: decode(hints[name], item, f"{where}.{name}") for name, item in value.items()})


def chosen(kind: Any, choice: Any, options: Mapping[str, Any], where: str) -> Any:
    """The Config of a component that the caller chose by name and options, or gave as a Config.

    Args:
        kind: the base ``Config`` of the family.

    Raises:
        InputError: no such component or option, or a wrong value.
    """
    if isinstance(choice, str):
        return decode(kind, {"name": choice} | encode(dict(options)), where)
    if not isinstance(choice, kind):
        raise InputError(where, repr(choice), f"the name of a {kind.catalog.kind}, or the Config of one",
                         f"see `polyptych list {kind.catalog.kind}s`")
    return dataclasses.replace(choice, **options)


def first_difference(planned: Any, found: Any) -> tuple[str, str, str] | None:
    """The first field in which two Configs (or their JSON) differ, with both values as JSON; None if they are equal."""
    one, other = dict(flat(encode(planned))), dict(flat(encode(found)))
    for name in {**one, **other}:
        if one.get(name) != other.get(name):
            return name, json.dumps(one.get(name)), json.dumps(other.get(name))
    return None


def flat(value: Mapping[str, Any], prefix: str = "", separator: str = ".") -> Iterator[tuple[str, Any]]:
    """``("optimizer.kind", "adamw")`` for every leaf of nested JSON objects."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from flat(item, f"{prefix}{key}{separator}", separator)
        else:
            yield f"{prefix}{key}", item


def read_json(path: Path) -> Any:
    """The contents of a JSON file.

    Raises:
        InputError: it is missing or is not JSON; the message names the line.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(path, "a pipe, a socket, or a device",  # reading would wait for a writer
                         "a file written by polyptych", "remove it, and restore the file")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(path, "no such file", "a file written by polyptych", "check the path") from None
    except OSError as error:
        raise InputError(path, f"a file that cannot be read ({error.strerror})", "a file written by polyptych",
                         "check the path") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or integers with thousands of digits
        raise InputError(path, f"a file that is not JSON ({error})", "a file written by polyptych",
                         "restore it or choose another run") from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_whole(path, (json.dumps(value, indent=2) + "\n").encode())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically: no reader, kill, or full disk ever leaves half of it.

    Raises:
        InputError: it cannot be written; the previous file is untouched.
    """
    with whole_file(path, len(data)) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def whole_file(path: Path, size: int = 0) -> Iterator[Path]:
    """The same for whatever writes a file of about ``size`` bytes itself: the path to write to, which becomes ``path``
    when the context ends without an error."""
    temporary = path.with_name(path.name + ".partial")
    with writing(path, size):
        try:
            yield temporary
            with open(temporary, "rb+") as file:
                # Otherwise the name may reach the disk before the contents, and a power failure leaves an empty file.
                os.fsync(file.fileno())
            put_in_place(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def put_in_place(temporary: Path, path: Path) -> None:
    """Give a finished file its final name, replacing an old one. Windows refuses this while anybody reads the old file
    (the viewer, a virus scanner); such reads are short, so wait for them."""
    for left in reversed(range(TRIES if sys.platform == "win32" else 1)):
        try:
            os.replace(temporary, path)
            return
        except PermissionError:
            if not left:
                raise
            time.sleep(BETWEEN_TRIES)


@contextlib.contextmanager
def writing(path: Path, size: int = 0) -> Iterator[None]:
    """Within this context, an error of the file system while writing ``size`` bytes becomes one line."""
    try:
        yield
    except OSError as error:
        room = f"{size / 2**20:.0f} MiB of free, writable disk" if size >= 2**20 else "free, writable disk"
        raise InputError(path, f"'{error.strerror or error}' while writing", room,
                         "free some space, then continue: what was there before is untouched") from error
