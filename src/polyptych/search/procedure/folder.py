"""What a search keeps in its folder, and how to read it back. Every file appears whole or not at all.

    search.json       every choice; resuming needs nothing else
    warmup/ sampling/ checkpoints and logs of the supermodel
    costs.json        what every node of the network costs
    conflicts.json    how often gradients conflict in every unit
    ranking.json      every judged policy, in order
    networks.json     the networks to train, with costs and scores on the supermodel
    policies/         their policies as files
    runs/             one ordinary run folder per network and seed
    results.json search.html search.md
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyptych import __version__
from polyptych.errors import InputError
from polyptych.folder_lock import LOCK
from polyptych.record import decode, encode, first_difference, read_json, write_json
from polyptych.run import Facts, Run, located_data, rewrite_run, with_data_of
from polyptych.search.procedure.candidates import Candidate
from polyptych.search.procedure.selection import Judged
from polyptych.search.procedure.settings import Search
from polyptych.search.space.budget import PolicyCost
from polyptych.search.space.policy import Policy


@dataclass(frozen=True)
class SearchSetup:
    """All choices of a search.

    Attributes:
        seeds: seeds of the networks that it trains; the supermodel uses the run's seed.
        facts: what the dataset reports about its labels.
    """

    run: Run
    search: Search
    seeds: tuple[int, ...]
    facts: Facts

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "search.json", {"version": __version__, "run": encode(self.run.located()),
                                            "search": encode(self.search), "seeds": list(self.seeds),
                                            "facts": encode(self.facts)})

    def with_data_of(self, folder: Path, run: Run) -> SearchSetup:
        """Point the search, and all that it has trained, to the data of another run, and save this."""
        for path in (folder / "search.json", *folder.rglob("run.json")):
            own = decode(Run, read_json(path)["run"], f"{path}: run")
            rewrite_run(path, dataclasses.replace(own, dataset=run.dataset))
        return SearchSetup.read(folder)

    @classmethod
    def read(cls, folder: Path) -> SearchSetup:
        """
        Raises:
            InputError: not the folder of a search.
        """
        path = folder / "search.json"
        data = read_json(path)
        if not isinstance(data, dict) or not {"run", "search", "seeds", "facts"} <= data.keys():
            raise InputError(path, "a file without \"run\", \"search\", \"seeds\" and \"facts\"",
                             "a search.json written by polyptych", "check the path")
        return cls(decode(Run, data["run"], f"{path}: run"), decode(Search, data["search"], f"{path}: search"),
                   decode(tuple[int, ...], data["seeds"], f"{path}: seeds"),
                   decode(Facts, data["facts"], f"{path}: facts"))


def require_data(folder: Path, moved_to: Path | None) -> None:
    """:func:`polyptych.run.require_data` for a search and all that it has trained so far."""
    setup = SearchSetup.read(folder)
    run = located_data(setup.run, setup.facts, moved_to, f"data of {folder}", f"search resume {folder}")
    if run is not setup.run:
        setup.with_data_of(folder, run)


def begin(setup: SearchSetup, folder: Path) -> None:
    """Claim a folder for a search.

    Raises:
        InputError: it holds something else, or a search with other choices.
    """
    path = folder / "search.json"
    if path.exists():
        found = SearchSetup.read(folder)
        if (run := with_data_of(found.run, found.facts, setup.run)) is not found.run:
            found = found.with_data_of(folder, run)
        difference = first_difference(setup.run.located(), found.run.located())
        if difference or found.search != setup.search or found.seeds != setup.seeds:
            if difference:
                name, needed, got = difference
            elif found.seeds != setup.seeds:
                name, needed, got = "--seeds", _words(setup.seeds), _words(found.seeds)
            else:
                name, needed, got = next(
                    (f"--{field.name.replace('_', '-')}", _words(getattr(setup.search, field.name)),
                     _words(getattr(found.search, field.name))) for field in dataclasses.fields(setup.search)
                    if getattr(setup.search, field.name) != getattr(found.search, field.name))
            raise InputError(folder, f"a search with other choices ({name} is {got})", f"{name} {needed}",
                             f"choose another --out, or continue with `polyptych search resume {folder}`")
    elif folder.exists() and any(file.name != LOCK for file in folder.iterdir()):
        raise InputError(folder, "a folder that is not empty", "a new folder for the search", "choose another --out")
    else:
        setup.write(folder)


def _words(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def discard(folder: Path) -> None:
    """Remove a folder that holds only the settings and the costs, because nothing was trained."""
    files = list(folder.iterdir())
    if {file.name for file in files} <= {"search.json", "costs.json", LOCK}:
        with contextlib.suppress(PermissionError):  # Windows keeps the lock file while it is held
            for file in sorted(files, key=lambda file: file.name == LOCK):
                file.unlink()
            folder.rmdir()


@dataclass(frozen=True)
class ScoredCandidate:
    """A candidate with what is known about it before its training.

    Attributes:
        scores: the skill of every task on the supermodel.
    """

    candidate: Candidate
    cost: PolicyCost
    scores: dict[str, float]

    @property
    def score(self) -> float:
        return sum(self.scores.values()) / max(len(self.scores), 1)


def run_folder(folder: Path, name: str, seed: int) -> Path:
    return folder / "runs" / f"{name}--seed{seed}"


def write_networks(folder: Path, networks: list[ScoredCandidate]) -> None:
    """``networks.json`` and the policy files."""
    (folder / "policies").mkdir(exist_ok=True)
    for network in networks:
        network.candidate.policy.write(folder / "policies" / f"{network.candidate.name}.json")
    write_json(folder / "networks.json", [
        {"name": n.candidate.name, "kind": n.candidate.kind, "note": n.candidate.note, "same_as": n.candidate.same_as,
         "policy": n.candidate.policy.encode(), "cost": encode(n.cost), "scores": n.scores} for n in networks])


def read_networks(folder: Path) -> list[ScoredCandidate]:
    """
    Raises:
        InputError: there is no file yet, or it is damaged.
    """
    path = folder / "networks.json"
    found = []
    for entry in _listed(path):
        policy = Policy.decode(entry.get("policy"), str(path))
        candidate = Candidate(str(entry.get("name")), str(entry.get("kind")), policy, str(entry.get("note", "")),
                              str(entry.get("same_as", "")))
        found.append(ScoredCandidate(candidate, decode(PolicyCost, entry.get("cost"), f"{path}: cost"),
                             decode(dict[str, float], entry.get("scores"), f"{path}: scores")))
    return found


@dataclass
class Ranking:
    """Judged policies in order, with the skill of every task."""

    path: Path
    scores: dict[Policy, dict[str, float]]

    @classmethod
    def read(cls, path: Path) -> Ranking:
        """The policies judged so far; empty without a file."""
        scores = {}
        for entry in _listed(path) if path.exists() else ():
            scores[Policy.decode(entry.get("policy"), str(path))] = decode(
                dict[str, float], entry.get("scores"), f"{path}: scores")
        return cls(path, scores)

    def add(self, policy: Policy, scores: dict[str, float]) -> None:
        """Add a policy and save all."""
        self.scores[policy] = scores
        write_json(self.path, [{"policy": p.encode(), "scores": s} for p, s in self.scores.items()])

    def judged(self) -> Judged:
        return Judged({policy: sum(scores.values()) / len(scores) for policy, scores in self.scores.items()})


def _listed(path: Path) -> list[dict[str, Any]]:
    data = read_json(path)
    if not isinstance(data, list) or not all(isinstance(entry, dict) for entry in data):
        raise InputError(path, "a file that is not a list of objects", "a file written by polyptych search",
                         "remove it, then resume the search")
    return data
