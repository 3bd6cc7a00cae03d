"""Train a recipe, test it, write its report: polyptych train RECIPE [--encoder NAME] [--tasks A,B] [--steps N] ..."""

from __future__ import annotations

from pathlib import Path

from polyptych.cli._parsing import parse, take
from polyptych.errors import InputError

SLOTS = ("dataset", "backbone", "encoder", "decoder", "balancer")

NOTE = """These choose components, whose own options then become available:
--out DIR: folder for the run, which must not exist yet (default: runs/RECIPE);
--dataset, --backbone, --encoder, --decoder, --balancer NAME: another component (see `polyptych list`);
--tasks A,B,...: tasks to predict; NAME:KIND gives a task a name of its own, for example material:semseg;
--from RUN: start from the settings of an earlier run (a folder or its run.json) in place of a recipe."""


def main(arguments: list[str]) -> None:
    from polyptych.recipes._catalog import load, names
    from polyptych.run import Run, read_run, with_components, with_tasks

    chosen, rest = take(arguments, {*SLOTS, "tasks", "from", "out"})
    recipe = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if (recipe is None) == ("from" not in chosen) and not {"-h", "--help"} & set(rest):
        raise InputError("polyptych train", "no recipe" if recipe is None else "both a recipe and --from",
                         f"a recipe ({', '.join(names())}) or --from RUN", "for instance `polyptych train rooms`")
    run = read_run(Path(chosen["from"]))[0] if "from" in chosen else load(recipe or "rooms")()
    run = with_components(run, {slot: chosen[slot] for slot in SLOTS if slot in chosen})
    if "tasks" in chosen:
        run = with_tasks(run, [name for name in chosen["tasks"].split(",") if name])
    run = parse(Run, rest, "train", default=run, note=NOTE)
    from polyptych.training import train as train_run

    train_run(run, Path(chosen.get("out", Path("runs") / (run.recipe or "run"))))
