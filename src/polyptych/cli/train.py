"""Train a recipe, or on a folder with dataset.toml: polyptych train RECIPE|DIR [--encoder NAME] [--steps N] ..."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from polyptych.cli._parsing import parse, take, with_choices
from polyptych.errors import InputError

if TYPE_CHECKING:
    from polyptych.run import Run

SLOTS = ("dataset", "backbone", "encoder", "decoder", "balancer")

NOTE = """With a folder that has a dataset.toml (`polyptych data describe DIR` writes a first one) instead of a recipe,
tasks, size, steps, backbone and augmentation are chosen from the data and shown; the options below override them.

These choose components, whose own options then become available:
--out DIR: folder for the run, which must not exist yet (default: runs/NAME of the recipe or data);
--dataset, --backbone, --encoder, --decoder, --balancer NAME: another component (see `polyptych list`);
--tasks A,B,...: tasks to predict; NAME:KIND gives a task a name of its own, for example material:semseg;
--from RUN: start from the settings of an earlier run (a folder or its run.json) instead of a recipe."""


def main(arguments: list[str]) -> None:
    from polyptych.recipes._catalog import names
    from polyptych.run import Run

    chosen, rest = take(arguments, {*SLOTS, "tasks", "from", "out"})
    recipe = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if (recipe is None) == ("from" not in chosen) and not {"-h", "--help"} & set(rest):
        raise InputError("polyptych train", "no recipe" if recipe is None else "both a recipe and --from",
                         f"a recipe ({', '.join(names())}), a folder with dataset.toml, or --from RUN",
                         "for instance `polyptych train rooms`")
    begun = run = _start(recipe, chosen.get("from"))
    run = with_choices(run, chosen, SLOTS, rest, "train")
    run = parse(Run, rest, "train", default=run, note=NOTE)
    from polyptych.training import train as train_run

    if begun.reasons:
        from polyptych.recipes._own_data import asked_for

        run = asked_for(begun, run)
        print(f"{run.recipe}: chosen from the data")
        for option, reason in run.reasons.items():
            print(f"  {option.replace('_', '-')}: {reason}")
    train_run(run, Path(chosen.get("out", Path("runs") / (run.recipe or "run"))))


def _start(recipe: str | None, earlier: str | None) -> Run:
    """The run that options then change: an earlier run, or that of a data folder or recipe."""
    from polyptych.recipes._catalog import load, names
    from polyptych.run import read_run

    if earlier is not None:
        return read_run(Path(earlier))[0]
    if recipe is None or recipe in names():
        return load(recipe or "rooms")()
    folder, description = Path(recipe), None
    if folder.suffix == ".toml" and folder.is_file():
        folder, description = folder.parent, folder
    if not folder.is_dir():
        if "/" in recipe or os.sep in recipe:
            raise InputError(f"polyptych train {recipe}", "no such folder", "a folder with dataset.toml, or a recipe",
                             "correct the path, or see `polyptych list recipes`")
        return load(recipe)()  # fails, with the list of recipes
    if description is None and not (folder / "dataset.toml").is_file():
        raise InputError(folder, "a folder without dataset.toml", "the description of the data",
                         f"let `polyptych data describe {recipe}` write a first one")
    from polyptych.recipes._own_data import own_data

    return own_data(folder, description)
