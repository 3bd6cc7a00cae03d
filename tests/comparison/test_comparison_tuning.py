"""Fair tuning: what is tried, what is chosen, and that the test split has no say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from comparison_runs import pretend_finished, two_tasks

from polyptych.balancers._base import CATALOG as BALANCERS
from polyptych.comparison import compare as comparing
from polyptych.comparison import tuning
from polyptych.comparison.compare import compare
from polyptych.comparison.grid import Entry, make_grid
from polyptych.comparison.records import Record
from polyptych.comparison.specification import with_balancer
from polyptych.comparison.tuning import RATE, Trial, Tuning, further, further_rates, in_words, own_option, rates
from polyptych.comparison.worker import Request, work
from polyptych.component import Catalog
from polyptych.decoders._base import CATALOG as DECODERS
from polyptych.encoders._base import CATALOG as ENCODERS
from polyptych.errors import InputError
from polyptych.run import Run


@pytest.fixture
def base(small_run) -> Run:
    return two_tasks(small_run)


class Bench:
    """Stands for training: ``skill`` says what a run is worth on validation, and every run it was asked for is kept."""

    def __init__(self, monkeypatch, skill):
        self.asked: list[Entry] = []
        self.skill = skill
        for module in (tuning, comparing):
            monkeypatch.setattr(module, "run_all", self.run_all)
        monkeypatch.setattr(comparing, "network_cost", lambda *arguments, **named: None)

    def run_all(self, entries, **_) -> dict[str, str]:
        for entry in entries:
            if entry.finished:
                continue
            self.asked.append(entry)
            pretend_finished(entry, 40.0 + len(self.asked), 0.5)
            record = Record.of_folder(entry.folder, entry.method.network, entry.method.balancer)
            skill = self.skill(entry.run)
            replace(record, curve=[{"step": entry.run.steps, "skill": skill, "headlines": {}}],
                    error="" if skill is not None else "a loss that is not finite",
                    test=None if entry.trial else record.test).write(entry.record)
        return {}

    @property
    def trials(self) -> list[Entry]:
        return [entry for entry in self.asked if entry.trial]


def by_rate(best: float):
    return lambda run: -abs(math.log(run.optimizer.learning_rate / best))


def test_every_method_gets_the_same_number_of_trials_and_none_is_tested(base: Run, tmp_path: Path, monkeypatch) -> None:
    bench = Bench(monkeypatch, by_rate(base.optimizer.learning_rate * 3))
    found = compare(base, tmp_path, networks=["shared"], balancers=["fixed", "dwa", "rlw"], seeds=[0, 1],
                    records=tmp_path / "records", tuning=Tuning(trials=5, seed=77, steps=1))
    assert {label: len(trials) for label, trials in found.tried.items()} == {
        "single · fixed": 5, "shared · fixed": 5, "shared · dwa": 5, "shared · rlw": 5}
    assert {entry.seed for entry in bench.trials} == {77} and {entry.run.steps for entry in bench.trials} == {1}
    assert all(Record.read(entry.record).test is None for entry in bench.trials)
    assert all(entry.record.parent == tmp_path / "records" / "trials" for entry in bench.trials)
    # Three times the recipe's rate is best; then the method's own option at that rate, or further rates.
    best = tuning._rounded(3 * base.optimizer.learning_rate)
    settings = {label: [trial.settings for trial in trials] for label, trials in found.tried.items()}
    assert settings["shared · dwa"][3:] == [{RATE: best, "balancer.temperature": 1.0},
                                            {RATE: best, "balancer.temperature": 4.0}]
    assert [one[RATE] for one in settings["shared · rlw"]] == [*rates(base), tuning._rounded(3 * best),
                                                               tuning._rounded(best / math.sqrt(3))]
    assert set(settings["shared · fixed"][3]) == {RATE, "balancer.weights"}
    # The reported runs have what was chosen, with their own seeds and the recipe's length.
    final = [entry for entry in bench.asked if not entry.trial]
    assert {entry.seed for entry in final} == {0, 1} and {entry.run.steps for entry in final} == {2}
    assert all(entry.run.optimizer.learning_rate == best for entry in final if not entry.method.untuned)
    assert [method.label for method in found.methods] == [
        "single · fixed", "single · fixed · untuned", "shared · fixed", "shared · dwa", "shared · rlw"]
    untuned = next(method for method in final if method.method.untuned)
    assert untuned.run.optimizer.learning_rate == base.optimizer.learning_rate
    assert found.reference is found.methods[0] and found.methods[0].settings == {RATE: best}
    page, text = ((tmp_path / f"comparison.{kind}").read_text() for kind in ("html", "md"))
    assert "5 trials of 1 steps of every method with seed 77" in page and page.count("chosen</span>") == 4
    assert "(chosen)" in text and "fixed, untuned" in text and "optimizer.learning_rate" not in page
    assert next(m for m in found.methods if m.untuned).delta_mtl is not None
    assert all(method.over_untuned is not None for method in found.methods) and "over untuned" in text
    # Again, nothing is asked for.
    count = len(bench.asked)
    again = compare(base, tmp_path, networks=["shared"], balancers=["fixed", "dwa", "rlw"], seeds=[0, 1],
                    records=tmp_path / "records", tuning=Tuning(trials=5, seed=77, steps=1))
    assert len(bench.asked) == count and again.tried == found.tried


def test_the_recipe_stays_where_nothing_is_better(base: Run, tmp_path: Path, monkeypatch) -> None:
    Bench(monkeypatch, lambda run: 0.5)
    found = compare(base, tmp_path, networks=["shared"], seeds=[0], records=tmp_path / "r", tuning=Tuning(trials=3))
    assert all(trials[0].chosen and not any(t.chosen for t in trials[1:]) for trials in found.tried.values())
    assert [(method.settings, method.untuned) for method in found.methods] == [({}, False), ({}, False)]


def test_a_diverged_trial_is_worse_than_any_other(base: Run, tmp_path: Path, monkeypatch) -> None:
    worst = by_rate(base.optimizer.learning_rate)
    Bench(monkeypatch, lambda run: None if run.optimizer.learning_rate >= base.optimizer.learning_rate else worst(run))
    found = compare(base, tmp_path, networks=["shared"], seeds=[0], records=tmp_path / "r", tuning=Tuning(trials=3))
    trials = found.tried["shared · fixed"]
    assert [trial.skill for trial in trials].count(-math.inf) == 2 and trials[1].chosen and trials[0].error


def test_nothing_but_divergence_is_said(base: Run, tmp_path: Path, monkeypatch) -> None:
    Bench(monkeypatch, lambda run: None)
    with pytest.raises(InputError, match=r"--tune: got a method all of whose trials diverged"):
        compare(base, tmp_path, networks=["shared"], seeds=[0], records=tmp_path / "r", tuning=Tuning(trials=3))


def test_the_tuning_seed_is_none_of_the_reported(base: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--tune-seed: got 1, a reported seed"):
        compare(base, tmp_path, networks=["shared"], seeds=[0, 1], tuning=Tuning(seed=1))
    assert not (tmp_path / "trials").exists()
    with pytest.raises(InputError, match=r"--trials: got 2"):
        Tuning(trials=2)


def test_the_own_option_is_that_of_the_part_in_which_rows_differ(base: Run, tmp_path: Path) -> None:
    networks = make_grid(base, tmp_path, ["cross_stitch", "shared"], ["dwa"], [0]).methods
    assert own_option(networks[1].run, networks) == ("encoder.own", (0.7, 0.5))
    balancers = make_grid(base, tmp_path, ["cross_stitch"], ["dwa", "rlw"], [0]).methods
    assert own_option(balancers[1].run, balancers) == ("balancer.temperature", (1.0, 4.0))
    assert own_option(balancers[2].run, balancers) is None  # rlw has none
    other = with_balancer(base, "dwa:temperature=4")
    assert own_option(other, balancers) == ("balancer.temperature", (1.0,))  # its own value is tried anyway


def test_weights_that_are_tuned_are_of_the_tasks(base: Run, tmp_path: Path) -> None:
    methods = make_grid(base, tmp_path, ["shared"], ["fixed", "equal"], [0]).methods
    name, values = own_option(methods[1].run, methods)
    assert name == "balancer.weights"
    assert values[:2] == ({"semseg": 3.0, "depth": 1.0}, {"semseg": 1.0, "depth": 3.0})


@pytest.mark.parametrize("catalog", [BALANCERS, DECODERS, ENCODERS])
def test_every_option_to_be_tuned_exists_and_every_value_is_allowed(catalog: Catalog) -> None:
    found = 0
    for name in catalog.names():
        config = catalog.load(name).Config()
        if option := config.owner.tuned_option(config, {"semseg": 1.0}):
            for value in option[1]:
                replace(config, **{option[0]: value})
            assert getattr(config, option[0]) not in option[1] and len(option[1]) >= 2
            found += 1
    assert found


@pytest.mark.parametrize(("best", "expected"), [(3.0, [9.0, 1.73, 5.2]), (0.333, [0.111, 0.192, 0.577]),
                                                (1.0, [0.577, 1.73, 0.76])])
def test_further_rates_leave_the_range_where_its_edge_is_best(best: float, expected: list[float]) -> None:
    assert further_rates([1.0, 0.333, 3.0], best, 3) == expected
    trials = [Trial({RATE: rate}, float(rate == best)) for rate in (1.0, 0.333, 3.0)]
    assert further(trials, ("balancer.c", (0.2,)), 2) == [{RATE: best, "balancer.c": 0.2}, {RATE: expected[0]}]


def test_settings_in_words() -> None:
    assert in_words({RATE: 0.003, "balancer.weights": {"a": 3.0, "b": 1.0}}) == "learning rate 0.003, weights a 3 b 1"
    assert in_words({"balancer.learning_rate_factor": 10.0}) == "learning rate factor 10"


def test_a_trial_is_trained_and_validated_and_never_tested(base: Run, tmp_path: Path, monkeypatch) -> None:
    asked: list[Entry] = []

    def here(entries, **_) -> dict[str, str]:
        asked.extend(entries)
        for entry in entries:
            work(Request.of(entry))
        return {}

    monkeypatch.setattr(tuning, "run_all", here)
    grid = make_grid(base, tmp_path, ["single"], ["fixed"], [0])
    tuned, tried = tuning.tune(grid, Tuning(trials=3, steps=1), tmp_path, None)
    assert len(asked) == 3  # and the second round is empty
    for entry in asked:
        assert not (entry.folder / "evaluation").exists() and not (entry.folder / "checkpoints").exists()
        assert json.loads(entry.record.read_text())["test"] is None
    skills = [trial.skill for trial in tried["single · fixed"]]
    assert all(math.isfinite(skill) for skill in skills) and len(set(skills)) == 3
    assert tuned.entries[0].record is None and tuned.entries[0].run.steps == 2
