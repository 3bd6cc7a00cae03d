"""Command-line arguments to dataclasses, with tyro; errors become one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from polyptych.errors import InputError

if TYPE_CHECKING:
    from polyptych.run import Run

T = TypeVar("T")


def take(arguments: list[str], names: set[str]) -> tuple[dict[str, str], list[str]]:
    """Split off ``--name value`` and ``--name=value`` for the given names, whose values decide which flags exist."""
    taken: dict[str, str] = {}
    rest: list[str] = []
    waiting = iter(arguments)
    for argument in waiting:
        flag, equals, value = argument.partition("=")
        if flag.startswith("--") and flag[2:] in names:
            value = value if equals else next(waiting, "")
            if not value or value.startswith("--"):
                raise InputError(flag, "no value", "a name", "for instance `--encoder shared`; see `polyptych list`")
            taken[flag[2:]] = value
        else:
            rest.append(argument)
    return taken, rest


def parse(kind: type[T], arguments: list[str], command: str, default: T | None = None, note: str = "") -> T:
    """Parse with tyro; its boxed message about bad input becomes one line.

    Args:
        kind: a dataclass; the docstring under each field is its help.
        command: name of the command, whose help opens with the docstring of its file.
        note: a further paragraph of the help.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), _unbroken(arguments):
            extra: dict[str, Any] = {} if default is None else {"default": default}
            doc = sys.modules[f"{__package__}.{command}"].__doc__ or ""
            return tyro.cli(kind, args=arguments, prog=f"polyptych {command.replace('_', '-')}",
                            description="\n\n".join(part for part in (doc, note) if part), **extra)
    except SystemExit as stop:
        if not stop.code:
            sys.stderr.write(said.getvalue())
            raise
        if found := _refused(stop):
            raise found from None
        raise _error(said.getvalue(), command, list(_flags(kind if default is None else default))) from None


def with_choices(run: Run, chosen: dict[str, str], slots: Sequence[str], arguments: list[str], command: str) -> Run:
    """The run with the chosen components and the tasks of ``--tasks``. For some datasets (``folder``, ``mixed``,
    ``prepared``, ``python``) only the data knows the kinds of the tasks, and its location is an option that is parsed
    later; so the dataset's options are parsed here first."""
    from polyptych.run import with_components, with_tasks

    run = with_components(run, {slot: chosen[slot] for slot in slots if slot in chosen})
    if "tasks" not in chosen:
        return run
    own: list[str] = []
    inside = False
    for argument in arguments:
        inside = argument.startswith("--dataset.") if argument.startswith("--") else inside
        own += [argument] if inside else []
    if own:
        kind: Any = dataclasses.make_dataclass("Data", [("dataset", type(run.dataset))], frozen=True)
        run = dataclasses.replace(run, dataset=parse(kind, own, command, default=kind(run.dataset)).dataset)
    return with_tasks(run, [name for name in chosen["tasks"].split(",") if name])


@contextlib.contextmanager
def _unbroken(arguments: list[str]) -> Iterator[None]:
    """Make tyro's box as wide as its message, so that no path or value is split; help keeps the terminal's width."""
    if {"-h", "--help"} & set(arguments):
        yield
        return
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100000"
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def _refused(stop: BaseException) -> InputError | None:
    """The error that an option itself raised, which tyro shows in its box."""
    error: BaseException | None = stop
    while error is not None:
        if isinstance(error, InputError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _error(box: str, command: str, flags: list[str]) -> InputError:
    """The substance of tyro's message, with the nearest of the command's flags where one is unknown."""
    text = " ".join(line.strip("│╭╮╰╯─ ") for line in box.splitlines())
    command = command.replace("_", "-")
    see = f"see `polyptych {command} --help`"
    if found := re.search(r"Unrecognized options: (--?[^\s,=]+)", text):
        # A forgotten prefix is as common as a typo: the last part of a flag counts like the whole.
        by_end = {flag.rpartition(".")[2].removeprefix("--"): flag for flag in flags}
        names = difflib.get_close_matches(found[1].removeprefix("--"), [*by_end, *(f[2:] for f in flags)], 3, 0.7)
        near = ", ".join(dict.fromkeys(by_end.get(name, f"--{name}") for name in names))
        needs = f"an option of {command}" + (f" (nearest: {near})" if near else "")
        return InputError(found[1], "an unknown option", needs, see)
    if found := re.search(r"invalid choice (\S+) for argument '(--[^']+)'\. Expected one of \(([^)]*)\)", text):
        return InputError(found[2], found[1], f"one of {found[3].rstrip(',')}", see)
    if found := re.search(r"Missing value for argument '(--[^']+)'", text):
        return InputError(found[1], "no value", "a value", see)
    if found := re.search(r"Error parsing (\S+?): (.*?)(?: Argument helptext| For full helptext|$)", text):
        return InputError(found[1], found[2].strip(), "a value of the type that the help states", see)
    return InputError(f"polyptych {command}", text.partition("For full helptext")[0].strip(), "valid options", see)


def _flags(options: Any, prefix: str = "--") -> Iterator[str]:
    """Every flag that a dataclass (or its defaults) gives to the command line."""
    for item in dataclasses.fields(options):
        value = None if isinstance(options, type) else getattr(options, item.name)
        name = prefix + item.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from _flags(value, f"{name}.")
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield from _flags(inner, f"{name}.{key}.") if dataclasses.is_dataclass(inner) else [f"{name}.{key}"]
        else:
            yield name
