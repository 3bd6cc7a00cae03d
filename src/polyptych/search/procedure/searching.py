"""A search from beginning to end, which does not repeat what its folder already holds.

1. Train the supermodel: a warm-up, then sampled policies (or, in the space ``automtl``, the paper's phases).
2. Judge policies on the validation split, each with its own batch statistics, under a hard budget; the highest ranked
   are the finalists (``automtl``: samples of the soft policy).
3. Train finalists and baselines like any other network, each with every seed, and test them once. The finalist with the
   highest mean skill on the validation split over the seeds wins.
4. Write the report.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from polyptych import distributed
from polyptych.comparison import on_ray
from polyptych.comparison.runner import Where, run_all
from polyptych.data.loading import TrainingBatches
from polyptych.errors import InputError
from polyptych.folder_lock import hold
from polyptych.interruption import Interrupted
from polyptych.networks import Network
from polyptych.record import read_json, write_json
from polyptych.run import Facts, Run
from polyptych.search.procedure import automtl
from polyptych.search.procedure.candidates import Candidate, baselines, distinct
from polyptych.search.procedure.conflicts import count_conflicts
from polyptych.search.procedure.folder import (
    Ranking,
    ScoredCandidate,
    SearchSetup,
    begin,
    discard,
    read_networks,
    require_data,
    write_networks,
)
from polyptych.search.procedure.judging import Judge
from polyptych.search.procedure.networks import LAST, planned_runs, write_inherited
from polyptych.search.procedure.phases import (
    PhaseTrainer,
    SamplingTrainer,
    finished_phase,
    load_phase,
    phase_run,
    train_phase,
    with_plain_balancer,
)
from polyptych.search.procedure.selection import select
from polyptych.search.procedure.settings import Search
from polyptych.search.procedure.super_encoder import build_supernetwork, encoder_of
from polyptych.search.report.page import write_search_report
from polyptych.search.space.budget import PolicyCost
from polyptych.search.space.policy import Policy
from polyptych.search.supermodel.costs import CostTable, measure_costs
from polyptych.training import seed_everything

CONFLICT_BATCHES = 20


def search(run: Run, choices: Search, folder: Path, seeds: tuple[int, ...] = (0,), *, on: Where = "local",
           say: Callable[[object], None] = print) -> Path:
    """Search, train, and compare.

    Args:
        run: the recipe; the encoders of the compared networks replace its own.
        folder: where everything goes; a folder that holds the same search continues it.
        seeds: the seeds to train every network with.
        on: where to train networks: ``local``, one process per device; ``ray``, one Ray task per run.

    Returns:
        The path of the report.

    Raises:
        InputError: bad input, a frozen backbone, no policy within the budget, or another process runs this search.
        Interrupted: Ctrl-C or SIGTERM; everything is saved, and the same call continues.
    """
    if on == "ray":
        on_ray.require_ray()
    check_freezing(run)
    setup = SearchSetup(run, choices, seeds, Facts.of(run.build_dataset("train")))
    begin(setup, folder)
    with hold(folder):
        try:
            return _Search(setup, folder, on, say).run_all()
        except InputError:
            discard(folder)  # other choices may be made in the same folder
            raise


def resume(folder: Path, *, on: Where = "local", moved_to: Path | None = None,
           say: Callable[[object], None] = print) -> Path:
    """Continue the search of a folder.

    Args:
        moved_to: where its data is now, if it moved.
    """
    if on == "ray":
        on_ray.require_ray()
    require_data(folder, moved_to)
    setup = SearchSetup.read(folder)
    with hold(folder):
        return _Search(setup, folder, on, say).run_all()


def check_freezing(run: Run) -> None:
    """Make sure that copies of the backbone's parts can come to differ.

    Raises:
        InputError: the whole backbone is frozen, is frozen until some step, or is replaced by stored features.
    """
    if run.backbone.freeze_until:
        raise InputError("--backbone.freeze-until", f"{run.backbone.freeze_until}, in a search", "a backbone that "
                         "is frozen for good or not at all: the phases of a search have steps of their own",
                         "leave it out")
    if run.loading.feature_views:
        raise InputError("--loading.feature-views", f"{run.loading.feature_views}, in a search", "images: a stored "
                         "feature has already passed the parts that a search copies", "leave it out")
    if run.backbone.freeze == "all":
        raise InputError("--backbone.freeze", "all, in a search", "a backbone that learns at least in part: copies of "
                         "frozen weights stay equal, so all ways of sharing them are the same network",
                         "leave it out, or freeze a part, as with --backbone.freeze stages --backbone.freeze-first 1")


class _Search:
    def __init__(self, setup: SearchSetup, folder: Path, on: Where, say: Callable[[object], None]):
        self.setup, self.folder, self.on, self.say = setup, folder, on, say
        self.run, self.choices = setup.run, setup.search
        self.tasks = setup.run.build_tasks(setup.facts.labels)
        self.device = distributed.local_device(setup.run.execution.device)
        self.go_on = f"polyptych search resume {folder}"
        self.warmup, self.sampling = folder / "warmup", folder / "sampling"
        self.costs: dict[Policy, PolicyCost] = {}

    def run_all(self) -> Path:
        path = self.folder / "networks.json"
        if not path.exists():
            self.check()
            self.train_supermodel()
            write_networks(self.folder, self.choose())
        self.train_networks(read_networks(self.folder))
        report = write_search_report(self.folder)
        self.say(f"report: {report}")
        return report

    # -- the supermodel -----------------------------------------------------------------------------------------------

    @property
    def steps(self) -> tuple[int, int]:
        """Numbers of steps of the warm-up and of the phase after it."""
        return self.choices.warmup or max(1, self.run.steps // 2), self.choices.sampling or self.run.steps

    @cached_property
    def network(self) -> Network:
        """The supermodel without weights."""
        seed_everything(self.run.seed)
        return build_supernetwork(self.run, self.choices, self.tasks, pretrained=False).to(self.device)

    @cached_property
    def table(self) -> CostTable:
        path = self.folder / "costs.json"
        if not path.exists():
            multiple = encoder_of(self.network).multiple
            height, width = self.run.size or self.run.build_dataset("train").read(0).info.native
            size = (height + -height % multiple, width + -width % multiple)  # as the network pads it
            measure_costs(encoder_of(self.network).supermodel, size, timed=self.choices.limits.timed,
                          device=str(self.device)).write(path)
        return CostTable.read(path)

    def cost(self, policy: Policy) -> PolicyCost:
        if policy not in self.costs:
            self.costs[policy] = self.table.cost(encoder_of(self.network).supermodel, policy)
        return self.costs[policy]

    @cached_property
    def shared_cost(self) -> PolicyCost:
        return self.cost(encoder_of(self.network).supermodel.one_backbone())

    def use(self, policy: Policy) -> float:
        """The share of the budget that a policy uses."""
        return self.choices.limits.use(self.cost(policy), self.shared_cost)

    def allowed(self, policy: Policy) -> bool:
        return self.choices.limits.allows(self.cost(policy), self.shared_cost)

    def check(self) -> None:
        """Refuse what cannot work before anything is trained: above all, a budget that no policy meets."""
        supermodel = encoder_of(self.network).supermodel
        for line in supermodel.capture.remarks():
            self.say(f"backbone: {line}")
        space = supermodel.space
        policies = (space.all_shared(), *(space.draw(Random(i)) for i in range(200)))
        if not any(self.allowed(policy) for policy in policies):
            least = min(map(self.use, policies))
            raise InputError("--budget", f"{self.choices.limits.text}, which no policy meets (the cheapest of 200 "
                             f"takes {least:.2f} times as much)", "a larger budget",
                             "1x is the cost of one backbone without any copy"
                             + (", and norms per task make every task compute nearly all of it again"
                                if space.norms == "task" else ""))
        self.run.build_balancer(self.tasks)

    def train_supermodel(self) -> None:
        """Train both phases, as far as they are not finished."""
        warm_steps, steps = self.steps
        run, remark = with_plain_balancer(self.run)
        if remark:
            self.say(remark)
        if not finished_phase(self.warmup, warm_steps):
            kind = automtl.PretrainTrainer if self.choices.is_automtl else PhaseTrainer
            train_phase(kind(phase_run(run, warm_steps), self.choices, self.warmup), "warm-up", self.go_on)
        if not finished_phase(self.sampling, steps):
            trainer: PhaseTrainer
            if self.choices.is_automtl:
                trainer = automtl.AlternatingTrainer(phase_run(run, steps), self.choices, self.sampling, self.warmup)
            else:
                trainer = SamplingTrainer(phase_run(run, steps), self.choices, self.sampling, self.warmup, self.allowed)
            train_phase(trainer, "supermodel", self.go_on)

    # -- choosing -----------------------------------------------------------------------------------------------------

    def choose(self) -> list[ScoredCandidate]:
        """Finalists and baselines, with costs and scores on the supermodel."""
        supermodel = encoder_of(self.network).supermodel
        conflicts = self.conflicts() if "conflict" in self.choices.baselines else []
        load_phase(self.sampling, self.network)
        judge = Judge(self.run, self.tasks, self.device, self.choices.calibration, self.choices.images)
        ranking = Ranking.read(self.folder / "ranking.json")

        def score(policy: Policy) -> float:
            if policy not in ranking.scores:
                ranking.add(policy, judge.score(self.network, policy))
                self.say(f"policy {len(ranking.scores)}: skill {_mean(ranking.scores[policy]):.4f}, "
                         f"{self.choices.limits.words(self.cost(policy), self.shared_cost)}")
            return _mean(ranking.scores[policy])

        finalists = self.samples() if self.choices.is_automtl else select(
            supermodel.space, self.allowed, score, self.choices.candidates, self.run.seed,
            [policy for _, policy in supermodel.space.baselines()][::-1], ranking.judged()
        ).best(self.choices.finalists)
        searched = [Candidate(f"searched-{number}", "searched", policy, f"finalist {number} of {len(finalists)}")
                    for number, policy in enumerate(finalists, 1)]
        others = baselines(supermodel, self.choices, self.use, conflicts, self.run.seed)
        networks = []
        for candidate in distinct([*searched, *others]):
            score(candidate.policy)
            networks.append(ScoredCandidate(candidate, self.cost(candidate.policy), ranking.scores[candidate.policy]))
        return networks

    def samples(self) -> list[Policy]:
        """Different samples of the soft policy that are within the budget."""
        logits = encoder_of(self.network).logits
        found: list[Policy] = []
        for policy in automtl.sample(logits, 100 * self.choices.finalists, self.run.seed, self.choices.share_first):
            plain = policy.canonical()
            if plain not in found and self.allowed(plain):
                found.append(plain)
            if len(found) == self.choices.finalists:
                return found
        if not found:
            raise InputError("--budget", f"{self.choices.limits.text}, which none of {100 * self.choices.finalists} "
                             "samples meets", "a larger budget, or none", "start another search with it")
        return found

    def conflicts(self) -> list[float]:
        """The conflict count of every unit, after the warm-up."""
        path = self.folder / "conflicts.json"
        if not path.exists():
            encoder = encoder_of(self.network)
            load_phase(self.warmup, self.network)
            train_set = self.run.build_dataset("train")
            size = self.run.size or train_set.read(0).info.native
            stream = TrainingBatches(train_set, self.tasks, self.run.augment, size, self.run.batch_size,
                                     self.run.seed + 2, on_fault=self.run.loading.on_fault)
            counts = count_conflicts(self.network, self.tasks, islice(stream, CONFLICT_BATCHES), self.device)
            write_json(path, dict(zip(encoder.supermodel.units.names, counts, strict=True)))
        found: dict[str, Any] = read_json(path)
        return [float(value) for value in found.values()]

    # -- training what was chosen -------------------------------------------------------------------------------------

    def train_networks(self, candidates: list[ScoredCandidate]) -> None:
        """Train every network with every seed, with the runner for comparisons."""
        entries = planned_runs(self.run, candidates, self.folder, self.setup.seeds)
        waiting = [entry for entry in entries if not entry.finished]
        if not waiting:
            return
        if self.choices.weights == "inherited":
            policies = {candidate.candidate.name: candidate.candidate.policy for candidate in candidates
                        if candidate.candidate.kind == "searched"}
            for entry in waiting:
                if entry.method.network in policies and not (entry.folder / LAST).exists():
                    self.inherit(entry.run, policies[entry.method.network], entry.folder)
        self.__dict__.pop("network", None)  # frees the supermodel's memory for the networks
        try:
            failed = run_all(entries, on=self.on)
        except Interrupted:
            raise Interrupted("stopped while training the networks; everything is saved, continue with "
                              f"`{self.go_on}`") from None
        if failed:
            label, error = next(iter(failed.items()))
            raise InputError(f"{len(failed)} of {len(entries)} runs failed, the first: {label}", error,
                             "every run to finish", f"correct the cause and continue with `{self.go_on}`; finished "
                             "runs are kept")

    def inherit(self, run: Run, policy: Policy, folder: Path) -> None:
        load_phase(self.sampling, self.network)
        judge = Judge(self.run, self.tasks, self.device, self.choices.calibration, 1)
        judge.score(self.network, policy)  # for its batch statistics
        write_inherited(run, self.tasks, self.network, policy, folder)


def _mean(scores: dict[str, float]) -> float:
    return sum(scores.values()) / len(scores)
