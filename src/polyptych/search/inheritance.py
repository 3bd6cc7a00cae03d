"""A run that begins with what the supermodel learned: its first checkpoint, at step 0, is written for it."""

from __future__ import annotations

from pathlib import Path

import torch

from polyptych.checkpoint import TrainingState, save_state
from polyptych.encoders.searched import Searched
from polyptych.network import Network
from polyptych.run import Run
from polyptych.search.extract import extract
from polyptych.search.policy import Policy
from polyptych.search.super_encoder import encoder_of
from polyptych.tasks._base import Task


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
