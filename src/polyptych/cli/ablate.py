"""Measure what each part of a decoder contributes: polyptych ablate RECIPE [--seeds 3] | RECIPE --costs"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from polyptych.cli.compare import choose, train_and_show
from polyptych.errors import InputError

if TYPE_CHECKING:
    from polyptych.run import Run

NOTE = """Trains the recipe's decoder without its parts, then adds one part at a time, as in its paper. Trains only what
is missing, like `polyptych compare`, and writes one table with accuracy and cost.

--costs: without training, show parameters, multiply-adds, memory and time of each variant, on random images;
--seeds N, --out DIR, --on local|ray: as for `polyptych compare` (DIR: comparisons/RECIPE-ablation).

--dataset, --backbone, --encoder, --decoder, --balancer NAME and --tasks A,B change the recipe. All other options are
those of `polyptych train` and apply to every variant:"""


def main(arguments: list[str]) -> None:
    costs_only = "--costs" in arguments
    run, chosen = choose([argument for argument in arguments if argument != "--costs"], "ablate",
                         {"seeds", "out", "on", "balancers"}, NOTE, "polyptych ablate nyuv2_ema_net")
    steps = run.decoder.ablation()
    if not steps:
        raise InputError(f"decoder {run.decoder.name}", "a decoder that defines no ablation",
                         "one with parts that can be left out", "choose another, for instance `--decoder ema_net`, "
                         "or name networks for `polyptych compare`")
    if costs_only:
        _show_costs(run)
        return
    from polyptych.comparison.specification import spell

    networks = [spell(run.encoder, step, given=run.decoder) for step in steps.values()]
    for description, network in zip(steps, networks, strict=True):
        print(f"{network}: {description}")
    train_and_show(run, chosen, networks, Path("comparisons") / f"{run.recipe or 'run'}-ablation")


def _show_costs(run: Run) -> None:
    from rich.console import Console

    from polyptych.profiling.profile import profile_run
    from polyptych.profiling.tables import cost_table

    profiles = {description: profile_run(dataclasses.replace(run, decoder=step), repeats=5, seconds=5, depth=0)
                for description, step in run.decoder.ablation().items()}
    Console().print(cost_table(run.decoder.name, profiles))
