"""The order of the floors: a module imports from its own floor and from those above its line here, never from below.

To allow a new import, move a line; if that makes another line wrong, the code lies in the wrong place. An import inside
a function counts as one at the top of a file: it hides a dependency and does not remove it. Components are found by
name (:mod:`polyptych.component`), which is no import, so that nobody depends on a chosen encoder or dataset.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from package_sources import ROOT, trees

FLOORS = {  # the longest name that a module begins with is its floor
    "errors": "the one error that input may cause; everything may raise it",
    "ranges": "options that are checked where they are set",
    "types": "what crosses a boundary: samples, features, outputs, losses",
    "component": "how a file becomes a choice; it knows no family",
    "record": "any Config to JSON and back",
    "folder_lock": "one writer of a run at a time; knows only errors",
    "host_memory": "one call of the C library",
    "native": "how functions are compiled",
    "devices": "accelerators by what they can do; they know errors only",
    "interruption": "signals, for every loop",
    "progress": "a bar, for every loop",
    "ops": "numerics without a notion of tasks or networks",
    "data.geometry": "one map from image to label pixels; tasks move their labels with it",
    "data.order": "permutations as pure functions",
    "data.files": "how files are found and opened, and what is said of broken ones",
    "data.pictures": "image files to arrays",
    "data._matlab": "MATLAB files to arrays",
    "data._float_pictures": "OpenEXR and PFM to arrays",
    "data.arrays": "other files to arrays",
    "data._contours": "the boundaries of a map of regions, for labels and for truths of a benchmark",
    "metrics": "sums over pixels; they know predictions and labels, not who made them",
    "distributed": "every collective; it adds up metrics and gives each process its device",
    "tasks": "all about what is predicted: loss, metric, pictures",
    "task_parts": "a task without a dataset, for programs of one's own",
    "datasets._base": "what every dataset is",
    "datasets._about": "what a dataset says of itself without its files",
    "datasets._holdout": "a part of train that is held out",
    "datasets._layouts": "how files on disk may lie",
    "datasets._manifest": "what a prepared dataset says of itself",
    "data": "samples to batches: transforms, loader, cache, preparation",
    "datasets": "files to samples; some are read through the cache, and derive labels as preparation does",
    "frames": "the images of a batch, each in its own size",
    "freezing": "what of a network stands still; it knows modules only",
    "optim": "optimizers and schedules; they know parameters only",
    "checkpoint": "state to files and back",
    "recomputation": "blocks of any network that are computed twice",
    "logbook": "metrics.jsonl and environment",
    "renaming": "tables of names, for whatever is called otherwise elsewhere",
    "hub": "files of runs on Hugging Face, fetched and checked",
    "weight_files": "files of weights from anywhere, opened safely",
    "profiling.memory": "of any module",
    "profiling.operators": "multiply-adds of any module",
    "profiling.timing": "of any call",
    "backbones": "images to feature pyramids",
    "decoders": "features to raw predictions",
    "search.capture": "a backbone as a graph of units",
    "search.space": "policies: who shares which unit",
    "search.supermodel": "all policies in one module, and one of them by itself",
    "encoders": "how features are shared; one of them builds a searched policy",
    "balancers": "losses to gradients; they see networks from outside",
    "networks": "decoder after encoder",
    "task_gradients": "how tasks get along in one batch; it sees networks from outside",
    "locations": "where the data of a run lie, by what its dataset's Config says",
    "run": "every choice of one run, and the parts built from it",
    "feature_cache": "what a run's frozen backbone makes of its data",
    "recipes": "functions that return a run",
    "passes": "forward passes and losses of a step",
    "parts": "what programs of one's own build by name",
    "evaluation_record": "what an evaluation finds, as data",
    "protocols": "which published numbers an evaluation may stand beside",
    "reports": "the look of all pages, and the page of a run folder; it reads files and trains nothing",
    "export.metadata": "what an exported file says about itself",
    "export.archive": "an exported file is looked at before it is trusted",
    "export.graph": "a network as a graph of operators",
    "export.runtime": "an exported file as a model",
    "export.formats": "which kinds of exported files there are; it loads their class when one is needed",
    "prediction": "a run or an exported file to scenes and pictures",
    "published": "what published checkpoints hold, one file per repository",
    "importing": "published checkpoints into run folders",
    "beginning": "trained runs into a fresh network",
    "evaluation": "predictions against labels",
    "export": "a run to one file that runs elsewhere, compared and, in INT8, evaluated",
    "profiling": "what a network costs",
    "model_card": "a run as a page of a repository",
    "pushing": "runs to repositories of Hugging Face",
    "training": "the loop, and the end of a run",
    "diagnosis": "whether tasks go together, of a run or in a loop of one's own",
    "comparison": "many runs, one table",
    "search": "supermodel, judging, finalists through the runner of comparison, report",
    "viewer": "a local page around prediction",
    "cli": "commands; nothing imports them",
    "__init__": "public names, imported at first use",
    "__main__": "python -m polyptych",
}


@cache
def modules() -> dict[str, Path]:
    """By name below ``polyptych``; a package is its ``__init__``."""
    found = {}
    for path in trees():
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)] = path
    return found


def for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def nodes(tree: ast.AST) -> list[ast.AST]:
    return [tree, *(inner for child in ast.iter_child_nodes(tree) if not for_type_checkers(child)
                    for inner in nodes(child))]


@cache
def imports() -> dict[str, set[str]]:
    """By module, the modules of this package that it imports, anywhere in its file."""
    known, found = modules(), {}
    for name, path in known.items():
        inside: set[str] = set()
        for node in nodes(trees()[path]):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "polyptych":
                base = node.module.partition(".")[2]
                for alias in node.names:
                    place = f"{base}.{alias.name}".strip(".")
                    inside.add(place if place in known else base or "__init__")
        # The version, which needs nothing, stands in the package's own file.
        found[name] = inside - {name, "__init__"}
    return found


def floor(module: str) -> str:
    return max((name for name in FLOORS if f"{module}.".startswith(f"{name}.")), key=len, default="")


def test_every_module_stands_on_a_floor_and_every_floor_holds_something() -> None:
    homeless = [module for module in modules() if not floor(module)]
    assert not homeless, "give them a line in FLOORS, with the reason"
    assert set(FLOORS) == {floor(module) for module in modules()}


def from_later_floors(graph: Mapping[str, set[str]]) -> list[str]:
    order = list(FLOORS)
    return [f"{module} ({floor(module)}) imports {other} ({floor(other)})"
            for module, others in graph.items() for other in sorted(others)
            if order.index(floor(other)) > order.index(floor(module))]


def test_no_module_imports_from_a_later_floor() -> None:
    wrong = from_later_floors(imports())
    assert not wrong, "\n".join(wrong)
    assert from_later_floors({"tasks.depth": {"errors", "cli.train"}}) == [
        "tasks.depth (tasks) imports cli.train (cli)"]


def test_modules_import_in_no_circle() -> None:
    graph, done = imports(), set()

    def circle(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module):], module]
        if module in done:
            return []
        for other in sorted(graph.get(module, ())):
            if found := circle(other, [*way, module]):
                return found
        done.add(module)
        return []

    found = [" -> ".join(way) for module in graph if (way := circle(module, []))]
    assert not found, "\n".join(dict.fromkeys(found))
