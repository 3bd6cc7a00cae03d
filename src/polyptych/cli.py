"""The command line. Every command imports only what it needs; bad input is one line and exit code 2."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from polyptych.errors import InputError, nearest

T = TypeVar("T")

SLOTS = ("dataset", "backbone", "encoder", "decoder", "balancer")
KINDS = ("recipes", "tasks", "datasets", "backbones", "encoders", "decoders", "balancers")


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 2 bad input, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    try:
        if name in ("-h", "--help", "help"):
            print(_usage())
        elif name == "--version":
            from polyptych import __version__

            print(__version__)
        elif name not in COMMANDS:
            raise InputError(f"command '{name}'", "an unknown name", nearest(name, COMMANDS), "see `polyptych --help`")
        else:
            COMMANDS[name](rest)
    except InputError as error:
        print(f"polyptych: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:  # Interrupted is one, with a message that says how to go on
        print(f"polyptych: {error or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


def _usage() -> str:
    lines = [f"  {name:<10}{(command.__doc__ or '').partition(chr(10))[0]}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: polyptych COMMAND [ARGUMENTS]", "",
                      "Multi-task learning of dense prediction: one image in, every panel of the scene out.", "",
                      *lines, "", "`polyptych COMMAND --help` explains a command."])


TRAIN_NOTE = """These name things, and come before the options that they bring:
--out DIR: folder of the run, which must not exist yet (runs/RECIPE);
--dataset, --backbone, --encoder, --decoder, --balancer NAME: another component (see `polyptych list`);
--tasks A,B,...: what is predicted;
--from RUN: in place of a recipe, the choices of an earlier run (a folder or its run.json)."""

# -- train and resume --------------------------------------------------------------------------------------------


def train(arguments: list[str]) -> None:
    """Train, test and report a recipe: polyptych train RECIPE [--encoder NAME] [--tasks A,B] [--steps N] ..."""
    from polyptych.recipes._catalog import load, names
    from polyptych.run import Run, read_run, with_components, with_tasks
    from polyptych.train import train as train_run

    chosen, rest = _take(arguments, {*SLOTS, "tasks", "from", "out"})
    recipe = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if (recipe is None) == ("from" not in chosen) and not {"-h", "--help"} & set(rest):
        raise InputError("polyptych train", "no recipe" if recipe is None else "both a recipe and --from",
                         f"a recipe ({', '.join(names())}) or --from RUN", "for instance `polyptych train rooms`")
    run = read_run(Path(chosen["from"]))[0] if "from" in chosen else load(recipe or "rooms")()
    if "tasks" in chosen:
        run = with_tasks(run, [name for name in chosen["tasks"].split(",") if name])
    run = with_components(run, {slot: chosen[slot] for slot in SLOTS if slot in chosen})
    run = _parse(Run, rest, "train", default=run, note=TRAIN_NOTE)
    train_run(run, Path(chosen.get("out", Path("runs") / (run.recipe or "run"))))


@dataclass(frozen=True)
class ResumeArguments:
    folder: tyro.conf.Positional[Path]
    """Run folder."""


def resume(arguments: list[str]) -> None:
    """Go on with a run that was interrupted, exactly as if nothing had happened: polyptych resume RUN"""
    options = _parse(ResumeArguments, arguments, "resume")
    from polyptych.run import read_run
    from polyptych.train import train as train_run

    train_run(read_run(options.folder)[0], options.folder, resume=True)


# -- evaluate, predict, report -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvaluateArguments:
    folder: tyro.conf.Positional[Path]
    """Run folder."""
    split: Literal["test", "val", "train"] = "test"
    """Split that is measured."""
    weights: Literal["", "last", "best"] = ""
    """Weights that are measured; empty takes what the run selects."""


def evaluate(arguments: list[str]) -> None:
    """Measure a trained run at native resolution, as a table and JSON: polyptych evaluate RUN [--split test]"""
    options = _parse(EvaluateArguments, arguments, "evaluate")
    from rich.console import Console

    from polyptych.evaluate import evaluate as evaluate_run
    from polyptych.reports.tables import terminal_table

    results = evaluate_run(options.folder, splits=(options.split,), weights=options.weights)
    Console().print(terminal_table(results[options.split]))
    print(options.folder / "evaluation" / f"{options.split}.json")


@dataclass(frozen=True)
class PredictArguments:
    folder: tyro.conf.Positional[Path]
    """Run folder."""
    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Images, or folders of images."""
    out: Path = Path("predictions")
    """Folder that receives the pictures."""
    arrays: bool = False
    """Also write raw arrays (.npy): class ids, meters, unit vectors, probabilities."""
    weights: Literal["", "last", "best"] = ""
    """Weights to use; empty takes what the run selects."""


def predict(arguments: list[str]) -> None:
    """Paint every task of your own images: polyptych predict RUN IMAGE... [--out DIR] [--arrays]"""
    options = _parse(PredictArguments, arguments, "predict")
    from polyptych.predict import predict as predict_run

    written = predict_run(options.folder, list(options.inputs), options.out, arrays=options.arrays,
                          weights=options.weights)
    print(written[-1])


@dataclass(frozen=True)
class ReportArguments:
    folder: tyro.conf.Positional[Path]
    """Run folder."""


def report(arguments: list[str]) -> None:
    """Write the report of a run again, without measuring anything: polyptych report RUN"""
    options = _parse(ReportArguments, arguments, "report")
    from polyptych.reports.page import write_report

    print(write_report(options.folder))


# -- list --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ListArguments:
    kinds: tyro.conf.Positional[tuple[str, ...]] = field(default=KINDS)
    """Which catalogs; all without an argument."""


def list_components(arguments: list[str]) -> None:
    """Everything that can be chosen by name: polyptych list [decoders ...]"""
    options = _parse(ListArguments, arguments, "list")
    for kind in options.kinds:
        if kind not in KINDS:
            raise InputError(f"catalog '{kind}'", "an unknown name", nearest(kind, KINDS), "see `polyptych list`")
    from rich.console import Console
    from rich.table import Table

    for kind in options.kinds:
        table = Table(title=kind, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
        for entry in _descriptions(kind):
            table.add_row(f"[bold]{entry.name}", entry.summary, f"[dim]{entry.source}")
        Console().print(table, "")


def _descriptions(kind: str) -> list[Any]:
    if kind == "recipes":
        from polyptych.recipes._catalog import descriptions

        return descriptions()
    from polyptych.component import Catalog

    catalog = Catalog(kind.removesuffix("s"), f"polyptych.{kind}")
    return [catalog.describe(name) for name in catalog.names()]


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train, "resume": resume, "evaluate": evaluate, "predict": predict, "report": report,
    "list": list_components,
}


# -- parsing -----------------------------------------------------------------------------------------------------


def _take(arguments: list[str], names: set[str]) -> tuple[dict[str, str], list[str]]:
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


def _parse(kind: type[T], arguments: list[str], command: str, default: T | None = None, note: str = "") -> T:
    """Parse with tyro; what it says about bad input in a box becomes one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            extra = {} if default is None else {"default": default}
            doc = COMMANDS[command].__doc__ or ""
            return tyro.cli(kind, args=arguments, prog=f"polyptych {command}",
                            description="\n\n".join(part for part in (doc, note) if part), **extra)
    except SystemExit as stop:
        if not stop.code:
            sys.stderr.write(said.getvalue())
            raise
        raise _parse_error(said.getvalue(), command, list(_flags(kind if default is None else default))) from None


def _parse_error(box: str, command: str, flags: list[str]) -> InputError:
    """The substance of tyro's message, with the nearest of the command's flags where one is unknown."""
    text = " ".join(line.strip("│╭╮╰╯─ ") for line in box.splitlines())
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
