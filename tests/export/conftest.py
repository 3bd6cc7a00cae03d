"""A run folder with untrained weights and two tasks, and its exports, made once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from jaxtyping import config


@contextmanager
def unchecked() -> Iterator[None]:
    """Sizes that are still open while a graph is captured are not of the type int, which checked annotations want."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)


@pytest.fixture(autouse=True)
def without_checks():
    with unchecked():
        yield


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    from polyptych.backbones.timm import Timm
    from polyptych.checkpoint import write_tensors
    from polyptych.datasets.rooms import Rooms
    from polyptych.decoders.heads import Heads
    from polyptych.recipes.rooms import rooms
    from polyptych.run import Facts, with_tasks, write_run

    folder = tmp_path_factory.mktemp("export") / "run"
    (folder / "checkpoints").mkdir(parents=True)
    run = with_tasks(replace(rooms(), dataset=Rooms.Config(size=(32, 64), val_frames=3), size=(32, 64),
                             decoder=Heads.Config(head="fused", width=8),
                             backbone=Timm.Config(model="test_resnet")), ["semseg", "depth"])
    facts = Facts.of(run.build_dataset("val"))
    torch.manual_seed(0)
    network = run.build_network(run.build_tasks(facts.labels), pretrained=False)
    write_run(folder / "run.json", run, facts)
    state = {f"network.{name}": value for name, value in network.state_dict().items()}
    write_tensors(folder / "checkpoints" / "last.safetensors", state, {"step": 7})
    return folder


@pytest.fixture(scope="session")
def exported(run_folder):
    from polyptych.export.exporting import export

    return export(run_folder)


@pytest.fixture(scope="session")
def onnx_file(exported) -> Path:
    return exported.path


@pytest.fixture(scope="session")
def torch_file(run_folder) -> Path:
    from polyptych.export.exporting import export

    with unchecked():
        return export(run_folder, format="torch", dynamic=True).path


@pytest.fixture(scope="session")
def onnx_model(onnx_file):
    from polyptych.prediction.model import open_model

    return open_model(onnx_file)


@pytest.fixture(scope="session")
def torch_model(torch_file):
    from polyptych.prediction.model import open_model

    with unchecked():
        return open_model(torch_file)
