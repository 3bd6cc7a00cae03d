"""The folder of a finished search, with made-up numbers and nothing trained."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from polyptych.record import write_json
from polyptych.run import Facts, Run
from polyptych.search import Supermodel, compile
from polyptych.search.procedure.candidates import Candidate
from polyptych.search.procedure.folder import ScoredCandidate, SearchSetup, run_folder, write_networks
from polyptych.search.procedure.settings import Search
from polyptych.search.supermodel.costs import CostTable, measure_costs

SKILLS = {  # by name: supermodel, then validation by seed
    "searched-1": (0.5, [0.40, 0.42, 0.41]), "searched-2": (0.6, [0.41, 0.40, 0.39]),
    "single": (0.1, [0.30, 0.32, 0.31]), "shared": (0.2, [0.35, 0.36, 0.34]), "bottom-3": (0.4, [0.38, 0.37, 0.39]),
    "tree-0": (0.3, [0.36, 0.43, 0.38]), "tree-1": (0.25, [0.37, 0.38, 0.40]), "tree-2": (0.28, [0.30, 0.41, 0.39])}


def evaluation(skill: float) -> dict:
    """As evaluation/val.json holds it, as far as a search reads it."""
    return {"protocol": "toy", "skill": skill, "tasks": {
        "semseg": {"headline": "mIoU", "metrics": {"mIoU": 100 * skill}, "higher_is_better": {"mIoU": True}},
        "depth": {"headline": "RMSE", "metrics": {"RMSE": 1 - skill}, "higher_is_better": {"RMSE": False}}}}


@cache
def measured(backbone, timed: bool) -> tuple[Supermodel, CostTable]:
    supermodel = compile(backbone.build(), ("semseg", "depth"))
    return supermodel, measure_costs(supermodel, (32, 32), timed=timed, repeats=1, seconds=0)


def write_search(folder: Path, run: Run, timed: bool = False) -> SearchSetup:
    """A search on two tasks whose finalist 1 won."""
    plan = SearchSetup(replace(run, tasks={name: run.tasks[name] for name in ("semseg", "depth")}), Search(), (0, 1, 2),
                Facts("toy", {}))
    plan.write(folder)
    supermodel, table = measured(run.backbone, timed)
    space = supermodel.space
    table.write(folder / "costs.json")
    policies = {"searched-1": space.bottom_shared(5), "searched-2": space.bottom_shared(6), "single": space.all_own(),
                "shared": space.all_shared(), "bottom-3": space.bottom_shared(3)}
    networks = []
    for name, (score, skills) in SKILLS.items():
        policy = policies.get(name, space.bottom_shared(4))
        networks.append(ScoredCandidate(Candidate(name, name.partition("-")[0], policy, f"note of {name}"),
                                table.cost(supermodel, policy), {"semseg": score - 0.1, "depth": score + 0.1}))
        for seed, skill in enumerate(skills):
            place = run_folder(folder, name, seed) / "evaluation"
            place.mkdir(parents=True)
            write_json(place / "val.json", evaluation(skill))
            write_json(place / "test.json", evaluation(skill - 0.05))
    same = Candidate("conflict", "conflict", policies["searched-1"], "conflicts", same_as="searched-1")
    networks.append(replace(networks[0], candidate=same))
    write_networks(folder, networks)
    return plan
