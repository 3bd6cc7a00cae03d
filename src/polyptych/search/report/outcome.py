"""The results of a search in numbers: skills with intervals, the comparison with random trees, rank correlations.

The validation split made every choice, and the comparisons here use it too; the numbers on the test split stand beside
them and chose nothing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scipy import stats

from polyptych.comparison.statistics import Estimate, delta_mtl
from polyptych.errors import InputError
from polyptych.evaluation_record import Evaluation, TaskResult
from polyptych.record import encode, write_json
from polyptych.search.procedure.folder import ScoredCandidate, SearchSetup, read_networks, run_folder
from polyptych.search.space.budget import KINDS, PolicyCost
from polyptych.search.supermodel.costs import CostTable

ENOUGH = 10
"""A rank correlation over fewer policies says little."""


@dataclass(frozen=True)
class TrainedNetwork:
    """One network of the comparison.

    Attributes:
        label: its name in the report; ``searched`` for the winning finalist.
        cost, relative: cost of the encoder, and the same in units of one shared backbone.
        supermodel: skill on the supermodel.
        skill, test: mean skill on the validation and test splits, over seeds.
        delta: delta_mtl on the validation split against the single networks, over seeds; None without these.
        headlines: headline metric of every task on the validation split, the mean over seeds.
        same_as: name of the network whose runs also count for this one.
    """

    name: str
    label: str
    kind: str
    note: str
    cost: PolicyCost
    relative: dict[str, float]
    supermodel: float
    skill: Estimate
    test: Estimate
    delta: Estimate | None
    headlines: dict[str, float]
    same_as: str = ""


@dataclass(frozen=True)
class Correlation:
    """Correlation of the ranks on the supermodel with those after training, over different policies.

    Attributes:
        policies: their number.
        spearman, kendall: -1 to 1; None for fewer than three policies or equal values.
    """

    policies: int
    spearman: float | None
    kendall: float | None


MEDIANS = {"tree": "random-tree median", "op": "median of the random policies"}
"""Kinds of baselines that a search has to beat, the fairest first."""


@dataclass(frozen=True)
class Versus:
    """The searched network against the median of the random trees, which use about the same budget, or of the random
    policies per unit if no tree was trained.

    The validation split chose the winning finalist, so it flatters that network; the test split chose nothing.

    Attributes:
        split: val or test.
        differences: differences in mean skill, by seed.
        better: number of seeds in which the searched network is better.
        interval: half the 95% interval of the mean difference; None for one seed.
        median: whose median it is, in words.
    """

    split: str
    differences: dict[int, float]
    mean: float
    interval: float | None
    better: int
    median: str = "random-tree median"

    @property
    def verdict(self) -> str:
        """The verdict in words, which calls a win only if it holds in every one of at least three seeds."""
        seeds = len(self.differences)
        amount = f"{self.mean:+.4f} skill on the {self.split} split over {seeds} seed{'s' * (seeds != 1)}"
        if self.better == seeds and seeds >= 3:
            return f"The searched network beats the {self.median} in every seed ({amount})."
        if self.better == seeds:
            return f"The searched network is above the {self.median} ({amount}), but fewer than 3 seeds show it."
        if self.mean > 0:
            return (f"The searched network is above the {self.median} on average ({amount}), in {self.better} of "
                    f"{seeds} seeds: this is no clear win.")
        return (f"The searched network does not beat the {self.median} ({amount}; better in {self.better} of "
                f"{seeds}).")


@dataclass(frozen=True)
class Outcome:
    """All numbers of the report."""

    setup: SearchSetup
    table: CostTable
    shared: PolicyCost
    networks: tuple[TrainedNetwork, ...]
    correlation: Correlation
    versus: tuple[Versus, ...]
    tasks: Mapping[str, TaskResult]

    @property
    def searched(self) -> TrainedNetwork:
        return next(network for network in self.networks if network.label == "searched")

    def write(self, path: Path) -> None:
        write_json(path, {
            "networks": encode(list(self.networks)), "correlation": encode(self.correlation),
            "versus": [encode(versus) | {"verdict": versus.verdict} for versus in self.versus],
            "shared": encode(self.shared), "measured": encode(self.table.setting)})


def gather(folder: Path) -> Outcome:
    """The outcome of a search whose networks are all trained.

    Raises:
        InputError: a run is missing or unfinished.
    """
    setup, networks = SearchSetup.read(folder), read_networks(folder)
    table = CostTable.read(folder / "costs.json")
    chosen = winner(networks, folder, setup.seeds)
    shared = _shared_cost(networks)
    val = {n.candidate.name: _records(folder, n, setup.seeds, "val") for n in networks}
    test = {n.candidate.name: _records(folder, n, setup.seeds, "test") for n in networks}
    reference = val.get("single", {})
    trained = tuple(_trained(n, chosen, shared, val[n.candidate.name], test[n.candidate.name], reference)
                    for n in networks)
    tasks = next(iter(next(iter(val.values())).values())).tasks
    versus = tuple(found for split in ("test", "val") if (found := _versus(trained, split)) is not None)
    return Outcome(setup, table, shared, trained, _correlation(trained), versus, tasks)


def winner(networks: list[ScoredCandidate], folder: Path, seeds: tuple[int, ...]) -> str:
    """The finalist with the highest mean skill on the validation split over all seeds. A finalist that shares like
    another counts as that one. A skill that is not finite loses to any that is."""
    skills = {}
    for network in networks:
        if network.candidate.kind == "searched":
            found = _records(folder, network, seeds, "val").values()
            skills[network.candidate.name] = sum(record.skill for record in found) / len(found)
    return max(skills, key=lambda name: skills[name] if math.isfinite(skills[name]) else -math.inf)


def _shared_cost(networks: list[ScoredCandidate]) -> PolicyCost:
    """The cost of one shared backbone; without that network, the cost of the network with the fewest multiply-adds."""
    for network in networks:
        if network.candidate.kind == "shared":
            return network.cost
    return min((n.cost for n in networks), key=lambda cost: cost.multiply_adds)


def _records(folder: Path, network: ScoredCandidate, seeds: tuple[int, ...], split: str
             ) -> dict[int, Evaluation]:
    """The evaluations of a network, by seed."""
    name = network.candidate.same_as or network.candidate.name
    return {seed: Evaluation.of_run(run_folder(folder, name, seed), split) for seed in seeds}


def _trained(network: ScoredCandidate, chosen: str, shared: PolicyCost, val: dict[int, Evaluation],
             test: dict[int, Evaluation], reference: dict[int, Evaluation]) -> TrainedNetwork:
    candidate, cost = network.candidate, network.cost
    relative = {kind.field: getattr(cost, kind.field) / getattr(shared, kind.field) for kind in KINDS.values()
                if getattr(shared, kind.field)}
    deltas = {seed: _delta(val[seed], reference[seed]) for seed in val if seed in reference}
    headlines = {task: sum(record.tasks[task].headline_value for record in val.values()) / len(val)
                 for task in next(iter(val.values())).tasks}
    return TrainedNetwork(
        candidate.name, "searched" if candidate.name == chosen else candidate.name, candidate.kind, candidate.note,
        cost, relative, network.score, Estimate.of({seed: r.skill for seed, r in val.items()}),
        Estimate.of({seed: r.skill for seed, r in test.items()}),
        Estimate.of(deltas) if deltas else None, headlines, candidate.same_as)


def _delta(record: Evaluation, reference: Evaluation) -> float:
    if record.protocol != reference.protocol:
        raise InputError("scores of single", f"numbers of protocol {reference.protocol}",
                         f"protocol {record.protocol}, that of network", "compare numbers of one protocol only")
    scores, single = ({task: of.tasks[task].headline_value for task in record.tasks} for of in (record, reference))
    return delta_mtl(scores, single, {task: result.higher_is_better[result.headline]
                                      for task, result in record.tasks.items()})


def _correlation(trained: tuple[TrainedNetwork, ...]) -> Correlation:
    own = [network for network in trained if not network.same_as]
    one, other = [n.supermodel for n in own], [n.skill.mean for n in own]
    if len(own) < 3 or len(set(one)) == 1 or len(set(other)) == 1:
        return Correlation(len(own), None, None)
    return Correlation(len(own), float(stats.spearmanr(one, other).statistic),
                       float(stats.kendalltau(one, other).statistic))


def _versus(trained: tuple[TrainedNetwork, ...], split: str) -> Versus | None:
    def skills(network: TrainedNetwork) -> dict[int, float]:
        return (network.test if split == "test" else network.skill).by_seed

    kind, median = next(((kind, median) for kind, median in MEDIANS.items()
                         if any(network.kind == kind for network in trained)), ("", ""))
    rivals = [network for network in trained if network.kind == kind]
    searched = next(network for network in trained if network.label == "searched")
    differences = {}
    for seed, value in skills(searched).items():
        others = [skills(rival)[seed] for rival in rivals if seed in skills(rival)]
        if others:
            differences[seed] = value - statistics.median(others)
    if not differences:
        return None
    found = Estimate.of(differences)
    return Versus(split, differences, found.mean, found.half_width, sum(value > 0 for value in differences.values()),
                  median)
