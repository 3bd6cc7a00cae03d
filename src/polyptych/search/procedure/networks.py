"""The runs of the networks that a search chose: their encoders, and the first checkpoint of those that begin with what
the supermodel learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from polyptych.checkpoint import TrainingState, save_state
from polyptych.encoders.searched import Searched
from polyptych.encoders.shared import Shared
from polyptych.encoders.single import Single
from polyptych.network import Network
from polyptych.run import Run
from polyptych.search.procedure.candidates import Candidate
from polyptych.search.procedure.super_encoder import encoder_of
from polyptych.search.space.policy import Policy
from polyptych.search.supermodel.extraction import extract
from polyptych.tasks._base import Task


def encoder_for(candidate: Candidate) -> Any:
    """The encoder of a candidate's runs."""
    if candidate.kind == "single":
        return Single.Config()
    if candidate.kind == "shared":
        return Shared.Config()
    return Searched.Config(policy=json.dumps(candidate.policy.encode(), separators=(",", ":")))


def write_inherited(run: Run, tasks: dict[str, Task], supernetwork: Network, policy: Policy, folder: Path) -> None:
    """Make the folder of a run whose network is the compact one of a policy, with the supermodel's weights, batch
    statistics and decoder. Training goes on from there like from any checkpoint."""
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
    path = folder / "checkpoints" / "last.safetensors"
    path.parent.mkdir(parents=True)
    save_state(path, state)
