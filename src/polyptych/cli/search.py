"""Search what tasks share, under a budget: polyptych search RECIPE [--space tree] [--budget flops=1.5x] ..."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from polyptych.cli._parsing import parse, take, with_choices
from polyptych.comparison.runner import Where
from polyptych.errors import InputError
from polyptych.run import Run
from polyptych.search.procedure.settings import Search
from polyptych.search.space.budget import HELP

SLOTS = ("dataset", "backbone", "decoder", "balancer")

NOTE = f"""Trains a supermodel, ranks policies on it, trains the best ones and the baselines, and writes search.html and
search.md. The same command continues a stopped search. There are also:
polyptych search resume FOLDER: continue a search;
polyptych search inspect POLICY [--png FILE]: who shares what, as text and as a picture;
polyptych search report FOLDER: write the report again.

The budget: {" ".join(HELP.split())}

--dataset, --backbone, --decoder, --balancer NAME and --tasks A,B change the recipe. The options of `polyptych train`
apply to every network that is trained."""


@dataclass(frozen=True, kw_only=True)
class Arguments(Run, Search):
    """The options of a search and of the runs that it makes."""

    out: Path | None = None
    """Folder of the search (default: searches/RECIPE)."""
    seeds: str = "1"
    """Seeds of every network: N for the seeds 0 to N-1, or a list, for example 4,7."""
    on: Where = "local"
    """Where networks are trained: local, one process per local device; ray, one Ray task per run."""

    def __post_init__(self) -> None:
        """Nothing to check here: ``part`` makes a Run and a Search, which check themselves."""

    def part(self, kind: type[Any]) -> Any:
        """The options as a Run or a Search."""
        return kind(**{field.name: getattr(self, field.name) for field in dataclasses.fields(kind)})


@dataclass(frozen=True)
class ResumeArguments:
    folder: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folder of the search."""
    on: Where = "local"
    """Where networks are trained: local, one process per local device; ray, one Ray task per run."""
    root: Annotated[Path | None, tyro.conf.arg(name="dataset.root")] = None
    """Where the data is now, if it moved since the search began; its records are updated."""


@dataclass(frozen=True)
class ReportArguments:
    folder: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folder of the search."""


@dataclass(frozen=True)
class InspectArguments:
    policy: tyro.conf.Positional[tuple[str, ...]] = ()
    """Policy file."""
    png: Path | None = None
    """Output file for the picture (default: next to the policy file)."""


def main(arguments: list[str]) -> None:
    commands = {"resume": _resume, "inspect": _inspect, "report": _report}
    if arguments and arguments[0] in commands:
        commands[arguments[0]](arguments[1:])
        return
    from polyptych.cli.compare import seeds
    from polyptych.recipes._catalog import load, names

    chosen, rest = take(arguments, {*SLOTS, "tasks"})
    recipe = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if recipe is None and not {"-h", "--help"} & set(rest):
        raise InputError("polyptych search", "no recipe", f"a recipe ({', '.join(names())}), resume, inspect or report",
                         "for instance `polyptych search rooms --budget flops=1.5x`")
    run = with_choices(load(recipe or "rooms")(), chosen, SLOTS, rest, "search")
    options = parse(Arguments, rest, "search", note=NOTE, default=Arguments(**{
        field.name: getattr(run, field.name) for field in dataclasses.fields(Run)}))
    run, choices = options.part(Run), options.part(Search)
    from polyptych.search.procedure.searching import search

    out = options.out or Path("searches") / (run.recipe or "run")
    _show(search(run, choices, out, tuple(seeds(options.seeds)), on=options.on))


def _resume(arguments: list[str]) -> None:
    options = parse(ResumeArguments, arguments, "search")
    folder = _one(options.folder, "resume", "the folder of a search", "searches/rooms")
    from polyptych.search.procedure.searching import resume

    _show(resume(folder, on=options.on, moved_to=options.root))


def _report(arguments: list[str]) -> None:
    options = parse(ReportArguments, arguments, "search")
    folder = _one(options.folder, "report", "the folder of a search", "searches/rooms")
    from polyptych.folder_lock import hold
    from polyptych.search.report.page import write_search_report

    with hold(folder):
        report = write_search_report(folder)
    _show(report)


def _inspect(arguments: list[str]) -> None:
    options = parse(InspectArguments, arguments, "search")
    path = _one(options.policy, "inspect", "a policy file", "searches/rooms/policies/shared.json")
    from polyptych.search.report.sharing import tree_lines, write_png
    from polyptych.search.space.policy import Policy

    policy = Policy.read(path)
    how = policy.compilation
    print(f"{path.name}: space {policy.space}, {len(policy.units)} units ({how.granularity}), graph {policy.graph}"
          + (", separate norms for every task" if policy.norms == "task" else ""))
    print("\n".join(tree_lines(policy)))
    picture = options.png or path.with_suffix(".png")
    write_png(policy, picture, path.stem)
    print(picture)


def _one(words: tuple[str, ...], command: str, needs: str, example: str) -> Path:
    if len(words) != 1:
        raise InputError(f"polyptych search {command}", " ".join(words) or "nothing", needs,
                         f"for instance `polyptych search {command} {example}`")
    return Path(words[0])


def _show(report: Path) -> None:
    """The verdict and where everything is."""
    import json

    found = json.loads(report.with_name("results.json").read_text(encoding="utf-8"))
    for versus in found["versus"]:
        print(versus["verdict"])
    correlation = found["correlation"]
    if correlation["spearman"] is not None:
        print(f"rank correlation of supermodel and trained networks: Spearman {correlation['spearman']:+.2f}, "
              f"Kendall {correlation['kendall']:+.2f} over {correlation['policies']} policies")
    print(report)
