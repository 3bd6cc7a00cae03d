"""A comparison from beginning to end: plan, train what is missing, measure, and write the table.

    result = polyptych.compare("rooms", networks=["single", "shared"], seeds=[0, 1, 2])
    print(result.methods[1].delta_mtl)

The parts are in :mod:`polyptych.comparison`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TextIO

from polyptych.comparison import on_local, on_ray
from polyptych.comparison.board import Board
from polyptych.comparison.costs import network_cost
from polyptych.comparison.gather import gather
from polyptych.comparison.pictures import examples
from polyptych.comparison.plan import Entry, check_parts, make_plan
from polyptych.comparison.results import Comparison, MethodResult, TaskFacts, collect
from polyptych.comparison.statistics import Estimate
from polyptych.recipes._catalog import load
from polyptych.reports.comparison import write_comparison
from polyptych.run import Run

__all__ = ["Comparison", "Estimate", "MethodResult", "TaskFacts", "compare", "compare_runs"]


def compare(recipe: str | Run, out: Path | None = None, *, networks: Sequence[str] = (),
            balancers: Sequence[str] = (), seeds: Sequence[int] = (0, 1, 2), on: Literal["local", "ray"] = "local",
            stream: TextIO | None = None) -> Comparison:
    """Compare networks and balancers on one recipe, with a single-task reference for every seed.

    Every run is a folder of its own under ``out/runs``. Runs that are finished there are not repeated, those that were
    interrupted go on from their last checkpoint. Nothing is selected on the test split: a run selects its weights as
    its recipe says (last, or best on the validation split carved from train) and is tested once, when it is finished.

    Args:
        recipe: a recipe's name, or a Run for any other choices.
        out: folder of the comparison; ``comparisons/RECIPE`` by default.
        networks: for instance ``["shared", "shared+heads:head=fpn"]``, see
            :mod:`polyptych.comparison.specification`; none is the recipe's own.
        balancers: for instance ``["equal", "fixed"]``; none is the recipe's own.
        on: ``local``, one process per device; ``ray``, one Ray task per run (the ``cluster`` extra).
        stream: where the progress board goes; standard error by default.

    Returns:
        The result, which is also written to ``out`` as ``comparison.html``, ``.md``, ``.csv`` and ``.json``. Runs that
        failed are in its ``failed``; repeating the call tries them again.

    Raises:
        InputError: the plan does not hold together, a folder holds another run, or no run finished.
        Interrupted: Ctrl-C or SIGTERM; the same call goes on.
    """
    base = load(recipe)() if isinstance(recipe, str) else recipe
    out = out or Path("comparisons") / (base.recipe or "run")
    if on == "ray":
        on_ray.require_ray()
    plan = make_plan(base, out, networks, balancers, seeds)
    check_parts(plan)
    out.mkdir(parents=True, exist_ok=True)
    plan.record(out)
    if on == "ray" and not all(entry.finished for entry in plan.entries):
        on_ray.connect()
    places = on_local.devices(base)
    with Board(plan, at_once=len(places), stream=stream) as board:
        if on == "ray":
            on_ray.run_all(board)
        else:
            on_local.run_all(board, places)
    failed = {run.entry.label: run.error for run in board.runs if run.state == "failed"}
    return _conclude(plan.entries, failed, out)


def compare_runs(folders: Sequence[Path], out: Path) -> Comparison:
    """The same table from run folders that are finished already; nothing is trained.

    The first single-task run (encoder ``single``) is the reference, together with those of other seeds.

    Raises:
        InputError: runs of different protocols or recipes, a run that is not finished, a seed twice, or no
            single-task reference for a seed.
    """
    entries = gather(folders)
    out.mkdir(parents=True, exist_ok=True)
    return _conclude(entries, {}, out)


def _conclude(entries: Sequence[Entry], failed: dict[str, str], out: Path) -> Comparison:
    comparison = collect(entries, failed)
    firsts = {method.label: Path(next(iter(method.runs.values()))) for method in comparison.methods}
    methods = tuple(dataclasses.replace(method, cost=network_cost(firsts[method.label], out / "costs"))
                    for method in comparison.methods)
    comparison = dataclasses.replace(comparison, methods=methods)
    same_seed = comparison.seeds[0]
    shown = {method.label: Path(method.runs[same_seed]) for method in methods if same_seed in method.runs}
    write_comparison(comparison, examples(shown) if shown else [], out)
    return comparison
