"""Search what tasks share, under a budget: polyptych search RECIPE [--space tree] [--budget flops=1.5x] ..."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyptych.cli._parsing import parse, take
from polyptych.errors import InputError

if TYPE_CHECKING:
    from polyptych.search.procedure.settings import Search

SLOTS = ("dataset", "backbone", "decoder", "balancer")

NOTE = """polyptych search RECIPE: trains a supermodel, ranks policies on it, trains the best and the baselines, and
writes search.html and search.md. The same command goes on where it was stopped. Also:
polyptych search resume FOLDER: goes on with a search;
polyptych search inspect POLICY [--png FILE]: who shares what, as text and as a picture;
polyptych search report FOLDER: writes the report again.

--out DIR: folder of the search (searches/RECIPE);
--seeds N: seeds 0 to N-1 of every network, or a list, 4,7 (1);
--budget: {budget}
Options of the search:
{options}

--dataset, --backbone, --decoder, --balancer NAME and --tasks A,B change the recipe. All other options are those of
`polyptych train` and hold for every network that is trained:"""


def main(arguments: list[str]) -> None:
    commands = {"resume": _resume, "inspect": _inspect, "report": _report}
    if arguments and arguments[0] in commands:
        commands[arguments[0]](arguments[1:])
        return
    from polyptych.cli.compare import seeds
    from polyptych.recipes._catalog import load, names
    from polyptych.run import Run, with_components, with_tasks
    from polyptych.search.procedure.settings import Search

    of_search = {field.name.replace("_", "-") for field in dataclasses.fields(Search)}
    if clash := of_search & {field.name.replace("_", "-") for field in dataclasses.fields(Run)}:
        raise TypeError(f"options of both a search and a run: {clash}")
    chosen, rest = take(arguments, {*SLOTS, *of_search, "tasks", "seeds", "out"})
    recipe = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if recipe is None and not {"-h", "--help"} & set(rest):
        raise InputError("polyptych search", "no recipe", f"a recipe ({', '.join(names())}), resume, inspect or report",
                         "for instance `polyptych search rooms --budget flops=1.5x`")
    run = load(recipe or "rooms")()
    run = with_components(run, {slot: chosen[slot] for slot in SLOTS if slot in chosen})
    if "tasks" in chosen:
        run = with_tasks(run, [name for name in chosen["tasks"].split(",") if name])
    choices = _choices({name: value for name, value in chosen.items() if name in of_search})
    run = parse(Run, rest, "search", default=run, note=_note())
    from polyptych.search.procedure.searching import search

    out = Path(chosen.get("out", Path("searches") / (run.recipe or "run")))
    _show(search(run, choices, out, tuple(seeds(chosen.get("seeds", "1")))))


def _choices(given: dict[str, str]) -> Search:
    """The options of a search from their texts."""
    from polyptych.search.procedure.settings import Search

    baselines = given.pop("baselines", None)
    words = [word for name, value in given.items() for word in _words(name, value)]
    found = parse(Search, words, "search")
    if baselines is None:
        return found
    return dataclasses.replace(found, baselines=tuple(filter(None, baselines.replace("none", "").split(","))))


def _words(name: str, value: str) -> list[str]:
    if name == "skip":  # tyro has --skip and --no-skip for what is yes or no
        if value not in ("yes", "no", "True", "False", "true", "false"):
            raise InputError("--skip", f"'{value}'", "yes or no", "for instance --skip no")
        return ["--skip" if value.lower() in ("yes", "true") else "--no-skip"]
    return [f"--{name}", value]


def _note() -> str:
    """The help, with the options of a search as their docstrings state them."""
    import ast
    import inspect

    from polyptych.search.procedure import settings
    from polyptych.search.space.budget import HELP

    body: list[Any] = next(node for node in ast.parse(inspect.getsource(settings)).body
                           if isinstance(node, ast.ClassDef)).body
    lines = []
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            name, default = ast.unparse(field.target).replace("_", "-"), ast.unparse(field.value) if field.value else ""
            default = ",".join(settings.BASELINES) if name == "baselines" else default.strip("'")
            lines.append(f"--{name}: {' '.join(str(text.value.value).split())} ({default})")
    return NOTE.format(budget=" ".join(HELP.split()), options="\n".join(lines))




def _folder(arguments: list[str], command: str) -> Path:
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise InputError(f"polyptych search {command}", " ".join(arguments) or "nothing", "the folder of a search",
                         f"for instance `polyptych search {command} searches/rooms`")
    return Path(arguments[0])


def _resume(arguments: list[str]) -> None:
    folder = _folder(arguments, "resume")
    from polyptych.search.procedure.searching import resume

    _show(resume(folder))


def _report(arguments: list[str]) -> None:
    folder = _folder(arguments, "report")
    from polyptych.search.report.page import write_search_report

    _show(write_search_report(folder))


def _inspect(arguments: list[str]) -> None:
    chosen, rest = take(arguments, {"png"})
    if len(rest) != 1 or rest[0].startswith("-"):
        raise InputError("polyptych search inspect", " ".join(rest) or "nothing", "a policy file",
                         "for instance `polyptych search inspect searches/rooms/policies/shared.json`")
    from polyptych.search.report.sharing import tree_lines, write_png
    from polyptych.search.space.policy import Policy

    path = Path(rest[0])
    policy = Policy.read(path)
    how = policy.compilation
    print(f"{path.name}: space {policy.space}, {len(policy.units)} units ({how.granularity}), graph {policy.graph}"
          + (", norms of every task's own" if policy.norms == "task" else ""))
    print("\n".join(tree_lines(policy)))
    picture = Path(chosen.get("png", path.with_suffix(".png")))
    write_png(policy, picture, path.stem)
    print(picture)


def _show(report: Path) -> None:
    """The verdict and where everything is."""
    import json

    found = json.loads(report.with_name("results.json").read_text())
    for versus in found["versus"]:
        print(versus["verdict"])
    correlation = found["correlation"]
    if correlation["spearman"] is not None:
        print(f"rank correlation of supermodel and trained networks: Spearman {correlation['spearman']:+.2f}, "
              f"Kendall {correlation['kendall']:+.2f} over {correlation['policies']} policies")
    print(report)
