"""A comparison from beginning to end: plan the grid, train what is missing, measure, and write the table.

    result = polyptych.compare("rooms", networks=["single", "shared"], seeds=[0, 1, 2])
    print(result.methods[1].delta_mtl)

The parts are in :mod:`polyptych.comparison`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from polyptych.comparison import on_ray
from polyptych.comparison.costs import network_cost
from polyptych.comparison.gather import gather
from polyptych.comparison.grid import Entry, check_parts, make_grid
from polyptych.comparison.pictures import examples, has_weights
from polyptych.comparison.report import write_comparison
from polyptych.comparison.results import Comparison, MethodResult, TaskFacts, collect
from polyptych.comparison.runner import Where, run_all
from polyptych.comparison.statistics import Estimate
from polyptych.comparison.tuning import Tried, Tuning, tune
from polyptych.profiling.profile import Cost
from polyptych.recipes._catalog import load
from polyptych.run import Run, read_run

__all__ = ["Comparison", "Estimate", "MethodResult", "TaskFacts", "compare", "compare_runs"]


def compare(recipe: str | Run, out: Path | None = None, *, networks: Sequence[str] = (),
            balancers: Sequence[str] = (), seeds: Sequence[int] = (0, 1, 2), records: Path | None = None,
            tuning: Tuning | None = None, on: Where = "local", stream: TextIO | None = None) -> Comparison:
    """Compare networks and balancers on one recipe, with a single-task reference for every seed.

    Every run has its own folder under ``out/runs``. Finished runs are not repeated; interrupted ones continue from
    their last checkpoint. Nothing is selected on the test split: a run selects its weights as
    its recipe says (last, or best on the validation split carved from train) and is tested once, when it is finished.

    Args:
        recipe: a recipe's name, or a Run for any other choices.
        out: folder of the comparison; ``comparisons/RECIPE`` by default.
        networks: for instance ``["shared", "shared+heads:head=fpn"]``, see
            :mod:`polyptych.comparison.specification`; none is the recipe's own.
        balancers: for instance ``["equal", "fixed"]``; none is the recipe's own.
        records: folder of small files (:mod:`polyptych.comparison.records`), one for every finished run, which can be
            committed: runs that have one there are finished, whatever is in ``out``. New runs leave theirs there and
            write no report of their own; of their folders only those of the first seed keep weights, for the pictures.
        tuning: how many settings of every method are tried on the validation split before its runs are trained with
            the best of them (:mod:`polyptych.comparison.tuning`); None takes the recipe's for all.
        on: ``local``, one process per device; ``ray``, one Ray task per run (the ``cluster`` extra).
        stream: where the progress board goes; standard error by default.

    Returns:
        The result, which is also written to ``out`` as ``comparison.html``, ``.md``, ``.csv`` and ``.json``. Runs that
        failed are in its ``failed``; repeating the call tries them again.

    Raises:
        InputError: the grid is inconsistent, a folder or a record belongs to another run, or no run finished.
        Interrupted: Ctrl-C or SIGTERM; the same call continues.
    """
    base = load(recipe)() if isinstance(recipe, str) else recipe
    out = out or Path("comparisons") / (base.recipe or "run")
    if on == "ray":
        on_ray.require_ray()
    grid = make_grid(base, out, networks, balancers, seeds, records)
    if tuning is None:
        check_parts(grid)
    out.mkdir(parents=True, exist_ok=True)
    grid.record(out)
    tried: Tried = {}
    if tuning is not None:
        grid, tried = tune(grid, tuning, out, records, on=on, stream=stream)
        check_parts(grid)
        grid.record(out)
    failed = run_all(grid.entries, on=on, stream=stream)
    return _conclude(grid.entries, failed, out, records, tuning, tried)


def compare_runs(folders: Sequence[Path], out: Path) -> Comparison:
    """The same table from finished run folders; nothing is trained.

    The first single-task run (encoder ``single``) is the reference, together with those of other seeds.

    Raises:
        InputError: runs of different protocols or recipes, a run that is not finished, a seed twice, or no
            single-task reference for a seed.
    """
    entries = gather(folders)
    out.mkdir(parents=True, exist_ok=True)
    return _conclude(entries, {}, out, None)


def _conclude(entries: Sequence[Entry], failed: dict[str, str], out: Path, records: Path | None,
              tuning: Tuning | None = None, tried: Tried | None = None) -> Comparison:
    comparison = collect(entries, failed)
    kept = out / "costs" if records is None else records / "costs"
    first = {entry.method.label: entry for entry in reversed(entries) if entry.tested}
    methods = tuple(dataclasses.replace(method, cost=_cost(first[method.label], kept)) for method in comparison.methods)
    comparison = dataclasses.replace(comparison, methods=methods, tuning=tuning, tried=tried or {})
    seed = comparison.seeds[0]
    shown = {entry.method.label: entry.folder for entry in entries
             if entry.seed == seed and entry.tested and has_weights(entry.folder)}
    write_comparison(comparison, examples(shown) if shown else [], out)
    return comparison


def _cost(entry: Entry, kept: Path) -> Cost | None:
    facts = read_run(entry.folder)[1] if (entry.folder / "run.json").exists() else None
    return network_cost(entry.method.run, facts, kept, anywhere=entry.record is not None)
