"""A run folder without a training: the choices of a small run, and untrained weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    from polyptych.backbones.timm import Timm
    from polyptych.checkpoint import write_tensors
    from polyptych.datasets.rooms import Rooms
    from polyptych.recipes.rooms import rooms
    from polyptych.run import Facts, write_run

    folder = tmp_path_factory.mktemp("predict") / "run"
    (folder / "checkpoints").mkdir(parents=True)
    run = replace(rooms(), dataset=Rooms.Config(size=(48, 64)), size=(48, 64),
                  backbone=Timm.Config(model="test_resnet"))
    facts = Facts.of(run.build_dataset("val"))
    torch.manual_seed(0)
    network = run.build_network(run.build_tasks(facts.labels), pretrained=False)
    write_run(folder / "run.json", run, facts)
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    write_tensors(folder / "checkpoints" / "last.safetensors", state, {"step": 0})
    return folder
