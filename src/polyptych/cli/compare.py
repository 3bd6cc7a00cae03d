"""Which method, at what cost: polyptych compare RECIPE [--networks A,B] [--balancers A,B] [--seeds 3] ..."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from polyptych.cli._parsing import parse, take, with_choices
from polyptych.errors import InputError

if TYPE_CHECKING:
    from polyptych.comparison.results import Comparison
    from polyptych.run import Run

SLOTS = ("dataset", "backbone", "encoder", "decoder", "balancer")

TUNING = {"trials": "trials", "tune-seed": "seed", "tune-steps": "steps"}

NOTE = """Trains every network with every balancer and every seed, and a single-task reference as well; finished runs
are not repeated, interrupted runs continue. Writes comparison.html, .md, .csv and .json:

--networks A,B,...: an encoder, a decoder, or both joined by +, with options as :option=value, for instance
single,shared,shared+heads:head=fpn; unnamed parts are the recipe's (default: the recipe's own network);
--balancers A,B,...: likewise (default: the recipe's own);
--seeds N: the seeds 0 to N-1; or a list, 4,7 (default: 3);
--out DIR: folder of the comparison (default: comparisons/RECIPE);
--records DIR: one small file for every finished run, which can be committed and continued elsewhere; a run with a
record there counts as finished, and new runs leave a record instead of a report and weights;
--tune: first try settings of every method on the validation split, equally many for each: learning rates, and values
of the method's own option where it has one; --trials N per method (default: 5), --tune-steps N steps per trial
(default: those of a run), --tune-seed N (default: 1000);
--on local|ray: one process per device here, or a Ray task per run (default: local);
--from RUN RUN ...: no training: a table from the folders of finished runs; the first one with encoder single is the
reference; --dataset.root DIR is where their data is now, if it moved.

--dataset, --backbone, --encoder, --decoder, --balancer NAME and --tasks A,B change the recipe itself. All other
options are those of `polyptych train` and hold for every run:"""


def main(arguments: list[str]) -> None:
    if "--from" in arguments:
        _from_folders(arguments)
        return
    tuned = "--tune" in arguments
    run, chosen = choose([argument for argument in arguments if argument != "--tune"], "compare",
                         {"networks", "balancers", "seeds", "out", "on", "records", *TUNING}, NOTE,
                         "polyptych compare rooms --networks single,shared")
    if not tuned and (given := TUNING.keys() & chosen.keys()):
        raise InputError(f"--{min(given)}", "an option for tuning without --tune", "--tune as well", "add --tune")
    chosen |= {"tune": ""} if tuned else {}
    train_and_show(run, chosen, listed(chosen.get("networks", "")), Path("comparisons") / (run.recipe or "run"))


def choose(arguments: list[str], command: str, names: set[str], note: str, example: str) -> tuple[Run, dict[str, str]]:
    """The recipe of a command line with everything it changes, and the values of ``names``."""
    from polyptych.recipes._catalog import load
    from polyptych.recipes._catalog import names as recipes
    from polyptych.run import Run

    chosen, rest = take(arguments, {*SLOTS, "tasks", *names})
    recipe = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if recipe is None and not {"-h", "--help"} & set(rest):
        raise InputError(f"polyptych {command}", "no recipe", f"a recipe ({', '.join(recipes())})",
                         f"for instance `{example}`")
    run = with_choices(load(recipe or "rooms")(), chosen, SLOTS, rest, command)
    if any(argument.partition("=")[0] == "--seed" for argument in rest):
        raise InputError("--seed", "one seed", "the seeds of all runs", "use --seeds, for instance `--seeds 4,7`")
    return parse(Run, rest, command, default=run, note=note), chosen


def train_and_show(run: Run, chosen: dict[str, str], networks: list[str], out: Path) -> None:
    """Compare networks as the options say, and show the table."""
    from polyptych.comparison.compare import compare
    from polyptych.comparison.tuning import Tuning

    on = chosen.get("on", "local")
    if on not in ("local", "ray"):
        raise InputError("--on", f"'{on}'", "local or ray", "choose one")
    out = Path(chosen.get("out", out))
    numbers = {field: _whole(f"--{name}", chosen[name]) for name, field in TUNING.items() if name in chosen}
    tuning = Tuning(**numbers) if "tune" in chosen else None
    result = compare(run, out, networks=networks, balancers=listed(chosen.get("balancers", "")),
                     seeds=seeds(chosen.get("seeds", "3")), on=on,  # type: ignore[arg-type]
                     tuning=tuning,
                     records=Path(chosen["records"]) if "records" in chosen else None)
    _show(result, out)


def seeds(text: str) -> list[int]:
    """``3`` is 0, 1, 2; ``4,7`` is these two; ``7,`` is this one."""
    try:
        if "," in text:
            return [int(part) for part in text.split(",") if part.strip()]
        if int(text) < 1:
            raise ValueError
        return list(range(int(text)))
    except ValueError:
        raise InputError("--seeds", f"'{text}'", "a number of seeds, or a list of them",
                         "for instance `--seeds 3` or `--seeds 4,7`") from None


def _whole(flag: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(flag, f"'{text}'", "a whole number", f"for instance `{flag} 5`") from None


def listed(text: str) -> list[str]:
    from polyptych.comparison.specification import split

    return split(text, ",")


def _from_folders(arguments: list[str]) -> None:
    from polyptych.comparison.compare import compare_runs
    from polyptych.run import require_data

    start = arguments.index("--from")
    chosen, rest = take(arguments[:start] + arguments[start + 1:], {"out", "dataset.root"})
    if unknown := [argument for argument in rest if argument.startswith("-")]:
        raise InputError(unknown[0], "an option that trains", "only --out and --dataset.root beside --from",
                         "remove it, or leave --from out to train what is missing")
    if not rest:
        raise InputError("--from", "no folder", "folders of finished runs",
                         "for instance `polyptych compare --from runs/single runs/shared`")
    moved_to = Path(chosen["dataset.root"]) if "dataset.root" in chosen else None
    for folder in rest:
        require_data(Path(folder), moved_to, f"compare --from {shlex.join(rest)}")
    out = Path(chosen.get("out", Path("comparisons") / "runs"))
    _show(compare_runs([Path(folder) for folder in rest], out), out)


def _show(result: Comparison, out: Path) -> None:
    from rich.console import Console

    from polyptych.comparison.report import terminal_table

    console = Console()
    console.print(terminal_table(result, console.width))
    print(out / "comparison.html")
    if result.failed:
        run, error = next(iter(result.failed.items()))
        raise InputError(f"{len(result.failed)} runs failed, the first: {run}", error, "every run to finish",
                         "correct the cause and repeat the command; finished runs are kept")
