"""The runs of the networks that a search chose: their encoders, and the first checkpoint of those that start from the
supermodel's weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from polyptych.checkpoint import TrainingState, save_state
from polyptych.comparison.grid import Entry, Method
from polyptych.encoders.searched import Searched
from polyptych.encoders.shared import Shared
from polyptych.encoders.single import Single
from polyptych.networks import Network
from polyptych.run import Run
from polyptych.search.procedure.candidates import Candidate
from polyptych.search.procedure.folder import ScoredCandidate, run_folder
from polyptych.search.procedure.super_encoder import encoder_of
from polyptych.search.space.policy import Policy
from polyptych.search.supermodel.extraction import extract
from polyptych.tasks._base import Task

LAST = Path("checkpoints") / "last.safetensors"
"""The checkpoint in a run's folder from which training continues."""


def encoder_for(candidate: Candidate) -> Any:
    """The encoder of a candidate's runs."""
    if candidate.kind == "single":
        return Single.Config()
    if candidate.kind == "shared":
        return Shared.Config()
    return Searched.Config(policy=json.dumps(candidate.policy.encode(), separators=(",", ":")))


def planned_runs(run: Run, candidates: Sequence[ScoredCandidate], folder: Path, seeds: Sequence[int]) -> list[Entry]:
    """Every candidate with every seed as a run for :func:`polyptych.comparison.runner.run_all`; a candidate that shares
    like an earlier one uses that one's runs."""
    methods = [Method(c.candidate.name, run.balancer.name, dataclasses.replace(run, encoder=encoder_for(c.candidate)))
               for c in candidates if not c.candidate.same_as]
    return [Entry(method, seed, run_folder(folder, method.network, seed)) for seed in seeds for method in methods]


def write_inherited(run: Run, tasks: dict[str, Task], supernetwork: Network, policy: Policy, folder: Path) -> None:
    """Make the folder of a run whose network is a policy's compact one, with the supermodel's weights, batch
    statistics, and decoder. Training continues from there as from any checkpoint."""
    network = run.build_network(tasks, pretrained=False)
    encoder = network.encoder
    assert isinstance(encoder, Searched)
    compact = extract(encoder_of(supernetwork).supermodel, policy)
    encoder.network.load_state_dict(compact.state_dict())
    network.decoder.load_state_dict(supernetwork.decoder.state_dict())
    balancer = run.build_balancer(tasks)
    state = TrainingState(network, balancer, run.optimizer.build(network, balancer),
                          torch.amp.GradScaler("cpu", enabled=False),
                          network if run.ema else None, progress={"epoch": [[0.0] * len(tasks)] * 2})
    path = folder / LAST
    path.parent.mkdir(parents=True, exist_ok=True)  # an interruption may have left the folder without the file
    save_state(path, state)
