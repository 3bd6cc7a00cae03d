"""Fair tuning (``polyptych compare --tune``): every method gets the same number of trials, judged on validation.

The first trials of a method are learning rates around the recipe's. The others try, at the best of these rates, values
of the method's own option (:attr:`polyptych.component.Component.tuned`), or further rates if it has none. All trials of
a comparison have the same seed, which is none of the reported ones; they are trained and validated but never tested.
The settings with the highest mean validation skill are then trained anew with the reported seeds. The single-task
reference is tuned like every other method, and is also trained with the recipe's settings, so that a gain over the
tuned baseline is shown next to the gain over the untuned one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from polyptych.comparison.grid import Entry, Grid, Method, check_parts, refuse_other_run, run_name, with_entries
from polyptych.comparison.records import Record
from polyptych.comparison.runner import Where, run_all
from polyptych.errors import InputError
from polyptych.ranges import check_range
from polyptych.run import Run

RATE = "learning-rate"
FACTORS = (1.0, 1 / 3, 3.0)  # the recipe's rate first, so that it wins ties
SLOTS = ("balancer", "decoder", "encoder")


@dataclass(frozen=True)
class Tuning:
    """How much to try.

    Attributes:
        trials: number of trials of every method; three are learning rates.
        seed: seed of all trials.
        steps: steps of a trial; None trains as long as the recipe.
    """

    trials: int = 5
    seed: int = 1000
    steps: int | None = None

    def __post_init__(self) -> None:
        check_range("--trials", self.trials, len(FACTORS), do="three learning rates are the least")
        check_range("--tune-seed", self.seed, 0, 2**63, below=True)
        if self.steps is not None:
            check_range("--tune-steps", self.steps, 1, do="raise it")


@dataclass(frozen=True)
class Trial:
    """One trial of a method.

    Attributes:
        settings: value by option, :data:`RATE` or ``SLOT.OPTION``.
        skill: mean validation skill; -inf if the run diverged.
        chosen: whether the method's reported runs have these settings.
        error: why it has no skill.
        seconds: training time.
    """

    settings: dict[str, Any]
    skill: float
    chosen: bool = False
    error: str = ""
    seconds: float | None = None


Tried = dict[str, list[Trial]]
"""Trials by label of the method."""


def tune(grid: Grid, tuning: Tuning, out: Path, records: Path | None, *, on: Where = "local",
         stream: TextIO | None = None) -> tuple[Grid, Tried]:
    """Try settings for every method of a grid.

    Returns:
        The grid with the chosen settings, and what was tried.

    Raises:
        InputError: the tuning seed is a reported one, a trial failed otherwise than by diverging, or a record is of
            other choices.
    """
    if tuning.seed in grid.seeds:
        raise InputError("--tune-seed", f"{tuning.seed}, a reported seed", "a seed that is not reported",
                         "choose another, so that no result is reported on the seed it was tuned on")
    bench = _Bench(grid, tuning, out / "trials", (records or out) / "trials", on, stream)
    # Single-task networks share nothing that weights or sharing could change, so only rates are tried for the
    # reference.
    options = {method.label: None if method.reference else own_option(method.run, grid.methods)
               for method in grid.methods}
    bench.run([(method, [{RATE: rate} for rate in rates(method.run)]) for method in grid.methods])
    more = tuning.trials - len(FACTORS)
    bench.run([(method, further(bench.of(method), options[method.label], more)) for method in grid.methods])
    tried = {method.label: _chosen(bench.of(method)) for method in grid.methods}
    methods = []
    for method in grid.methods:
        best = next(trial for trial in tried[method.label] if trial.chosen)
        settings = {name: value for name, value in best.settings.items() if value != current(method.run, name)}
        methods.append(dataclasses.replace(method, run=with_settings(method.run, settings), settings=settings))
        if method.reference and settings:
            methods.append(dataclasses.replace(method, reference=False, untuned=True))
    return with_entries(methods, grid.seeds, out, records), tried


class _Bench:
    """Runs trials and remembers them, in order."""

    def __init__(self, grid: Grid, tuning: Tuning, folder: Path, records: Path, on: Where, stream: TextIO | None):
        self.grid = grid
        self.tuning, self.folder, self.records, self.on, self.stream = tuning, folder, records, on, stream
        self._settings: dict[str, list[dict[str, Any]]] = {}
        self._entries: dict[str, list[Entry]] = {}

    def run(self, settings: Sequence[tuple[Method, Sequence[dict[str, Any]]]]) -> None:
        new = []
        for method, several in settings:
            for one in several:
                entry = self._entry(method, one)
                self._settings.setdefault(method.label, []).append(one)
                self._entries.setdefault(method.label, []).append(entry)
                new.append(entry)
        check_parts(self.grid, new)
        failed = run_all(new, on=self.on, stream=self.stream)
        if failed:
            label, error = next(iter(failed.items()))
            raise InputError(f"{len(failed)} trials failed, the first: {label}", error, "every trial to finish",
                             "correct the cause and repeat the command; finished trials are kept")

    def of(self, method: Method) -> list[Trial]:
        found = []
        for settings, entry in zip(self._settings[method.label], self._entries[method.label], strict=True):
            record = Record.read(entry.record)  # type: ignore[arg-type]
            found.append(Trial(settings, record.skill, error=record.error, seconds=record.seconds))
        return found

    def _entry(self, method: Method, settings: dict[str, Any]) -> Entry:
        run = with_settings(method.run, settings)
        steps = self.tuning.steps or run.steps
        # Only the end counts, unless the best weights on the way do.
        every = min(run.monitoring.validate_every, steps) if run.select == "best" else steps
        run = dataclasses.replace(run, steps=steps,
                                  monitoring=dataclasses.replace(run.monitoring, validate_every=every))
        length = {"steps": steps} if self.tuning.steps else {}
        trial = dataclasses.replace(method, run=run, settings={**settings, **length})
        name = run_name(trial, self.tuning.seed)
        entry = Entry(trial, self.tuning.seed, self.folder / name, record=self.records / f"{name}.json", trial=True)
        refuse_other_run(entry)
        return entry


def rates(run: Run) -> list[float]:
    """The recipe's learning rate, a third of it, three times it."""
    return [_rounded(run.optimizer.learning_rate * factor) if factor != 1 else run.optimizer.learning_rate
            for factor in FACTORS]


def own_option(run: Run, methods: Sequence[Method]) -> tuple[str, tuple[Any, ...]] | None:
    """The option to tune for a row, with the values to try: an option of the balancer if rows differ in balancers, of
    the decoder or encoder if they differ in these; None if there is none."""
    standard = {name: task.standard_weight for name, task in run.tasks.items()}
    for slot in SLOTS:
        config = getattr(run, slot)
        if len({getattr(method.run, slot).name for method in methods if not method.reference}) < 2:
            continue
        if option := config.owner.tuned_option(config, standard):
            name, values = option
            return f"{slot}.{name}", tuple(value for value in values if value != getattr(config, name))
    return None


def further(trials: Sequence[Trial], option: tuple[str, tuple[Any, ...]] | None, number: int) -> list[dict[str, Any]]:
    """A number of further settings, after learning rates were tried."""
    best = _best(trials).settings[RATE]
    found: list[dict[str, Any]] = []
    if option is not None:
        found = [{RATE: best, option[0]: value} for value in option[1]]
    tried = [trial.settings[RATE] for trial in trials]
    return [*found, *({RATE: rate} for rate in further_rates(tried, best, number))][:number]


def further_rates(tried: Sequence[float], best: float, number: int) -> list[float]:
    """Rates beyond the best one if it is the smallest or largest so far, then on both sides of it in ever finer
    steps."""
    found: list[float] = []
    if best == max(tried):
        found.append(_rounded(3 * best))
    elif best == min(tried):
        found.append(_rounded(best / 3))
    step = math.sqrt(3)
    while len(found) < number:
        found += [_rounded(best / step), _rounded(best * step)]
        step = math.sqrt(step)
    return found[:number]


def with_settings(run: Run, settings: Mapping[str, Any]) -> Run:
    """The run with other values of options."""
    for name, value in settings.items():
        if name == RATE:
            run = dataclasses.replace(run, optimizer=dataclasses.replace(run.optimizer, learning_rate=value))
        else:
            slot, _, option = name.partition(".")
            run = dataclasses.replace(run, **{slot: dataclasses.replace(getattr(run, slot), **{option: value})})
    return run


def current(run: Run, name: str) -> Any:
    """The run's own value of a setting."""
    slot, _, option = name.partition(".")
    return run.optimizer.learning_rate if name == RATE else getattr(getattr(run, slot), option)


def in_words(settings: Mapping[str, Any]) -> str:
    """``learning rate 0.003, temperature 1``; the recipe's settings have none."""
    return ", ".join(_word(name, value) for name, value in settings.items())


def _word(name: str, value: Any) -> str:
    shown = " ".join(f"{key} {number:g}" for key, number in value.items()) if isinstance(value, dict) else (
        f"{value:g}" if isinstance(value, float) else str(value))
    return f"{name.rpartition('.')[2].replace('_', ' ').replace('-', ' ')} {shown}"


def _best(trials: Sequence[Trial]) -> Trial:
    """The first of the highest skill."""
    return max(trials, key=lambda trial: -math.inf if math.isnan(trial.skill) else trial.skill)


def _chosen(trials: Sequence[Trial]) -> list[Trial]:
    best = _best(trials)
    if best.skill == -math.inf:
        raise InputError("--tune", "a method all of whose trials diverged", "one that trains",
                         f"lower --optimizer.learning-rate ({trials[0].error})")
    return [dataclasses.replace(trial, chosen=trial is best) for trial in trials]


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
