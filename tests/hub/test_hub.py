"""A run goes to a server and comes from it; what the network, the server or a name can do wrong is one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import polyptych
from hub_server import Hub, serving, use
from polyptych import hub as client
from polyptych.backbones.timm import Timm
from polyptych.beginning import begin
from polyptych.checkpoint import write_tensors
from polyptych.cli import main
from polyptych.prediction import load_network
from polyptych.recipes._catalog import load as load_recipe
from polyptych.run import Facts, Monitoring, read_run, with_components, with_tasks, write_run

NAME = "anna/rooms"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as training leaves it, without the training."""
    folder = tmp_path_factory.mktemp("runs") / "rooms"
    (folder / "checkpoints").mkdir(parents=True)
    recipe = with_tasks(load_recipe("rooms")(), ["semseg", "depth"])
    small = replace(recipe.dataset, size=(48, 64), val_frames=2, test_frames=2)  # type: ignore[call-arg]
    recipe = replace(recipe, dataset=small, backbone=Timm.Config(model="test_resnet"), size=(48, 64),
                     monitoring=Monitoring(trivial_samples=4))
    data = recipe.build_dataset("train")
    network = recipe.build_network(recipe.build_tasks(data.labels))
    write_run(folder / "run.json", recipe, Facts.of(data))
    tensors = {f"network.{name}": value for name, value in network.state_dict().items()}
    write_tensors(folder / "checkpoints/last.safetensors", tensors | {"optimizer.0.x": torch.zeros(9)}, {"step": 7})
    return folder


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server, and a client that knows no other and has an empty cache."""
    with serving() as hub:
        use(hub, tmp_path / "home", monkeypatch)
        yield hub


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("polyptych: "), said
    return said


def test_out_and_in_again(run: Path, server: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run)]) == 0
    assert main(["push", str(run), NAME, "--license", "MIT"]) == 0
    assert capsys.readouterr().out.strip().endswith(f"{server.url}/{NAME}")
    files = server.repositories[NAME]
    assert sorted(files) == ["README.md", "evaluation/test.images.txt", "evaluation/test.json", "model.safetensors",
                             "run.json"]
    assert b"optimizer" not in files["model.safetensors"][:4000]
    assert str(tmp_path.parent) not in files["run.json"].decode()
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(photo)
    for source, out in ((str(run), "here"), (f"hf://{NAME}", "there")):
        assert main(["predict", source, str(photo), "--out", str(tmp_path / out), "--arrays"]) == 0
    for task in ("semseg", "depth"):
        assert np.array_equal(*(np.load(tmp_path / out / f"photo_{task}.npy") for out in ("here", "there")))
    assert main(["evaluate", f"hf://{NAME}"]) == 0
    fetched = client.local_folder(Path(f"hf://{NAME}"))
    numbers = [json.loads((folder / "evaluation/test.json").read_text())["tasks"] for folder in (run, fetched)]
    assert numbers[0] == numbers[1]


def test_the_card_says_what_it_is(run: Path, server: Hub) -> None:
    assert main(["push", str(run), NAME]) == 0
    card = server.repositories[NAME]["README.md"].decode()
    for said in ("library_name: polyptych", 'polyptych.load("hf://anna/rooms")', "(0.485, 0.456, 0.406)",
                 "multiples of 32", "depth in meters", "the best constant prediction", "## Limits"):
        assert said in card


@pytest.mark.grid
def test_the_exported_file_comes_along_on_request(run: Path, server: Hub, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main(["push", str(run), NAME, "--onnx"]) == 0
    session = onnxruntime.InferenceSession(server.repositories[NAME]["model.onnx"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["polyptych"])["model"]
    assert about["multiple"] == 32 and about["outputs"]["depth"] == "depth in meters" and about["size"] == [48, 64]


def test_without_a_connection_what_was_fetched_serves(run: Path, server: Hub, monkeypatch: pytest.MonkeyPatch,
                                                      capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["push", str(run), NAME]) == 0
    there = polyptych.load(f"hf://{NAME}").network
    monkeypatch.setattr(client, "reachable", lambda url: False)
    assert torch.equal(polyptych.load(f"hf://{NAME}").network.std, there.std)
    assert "no connection" in refused(capsys, "evaluate", "hf://anna/other")
    monkeypatch.setattr("polyptych.pushing.reachable", lambda url: False)
    assert "no connection" in refused(capsys, "push", str(run), NAME)


def test_names_that_are_not_there(run: Path, server: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert "or a private one" in refused(capsys, "evaluate", "hf://anna/none")
    assert "malformed address" in refused(capsys, "evaluate", "hf://anna")
    assert "OWNER/NAME" in refused(capsys, "push", str(run), "anna")
    server.repositories["anna/empty"] = {"README.md": b"nothing"}
    assert "without run.json" in refused(capsys, "evaluate", "hf://anna/empty")
    assert main(["push", str(run), NAME]) == 0
    assert "no revision 'x'" in refused(capsys, "evaluate", f"hf://{NAME}@x")
    server.faults = {"closed"}
    assert "got no login" in refused(capsys, "push", str(run), NAME)
    server.faults = {"full"}
    assert "an error of the server" in refused(capsys, "push", str(run), NAME)


def test_downloads_that_break_off_or_are_something_else(run: Path, server: Hub, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its attempts
    assert main(["push", str(run), NAME]) == 0
    for fault, says in (("cut", "broke off"), ("other", "contents with hash")):
        server.faults = {fault}
        assert says in refused(capsys, "evaluate", f"hf://{NAME}")
    server.faults = set()
    assert polyptych.load(f"hf://{NAME}").tasks.keys() == {"semseg", "depth"}
    server.repositories[NAME]["run.json"] = b"[]"
    shutil.rmtree(tmp_path / "home")
    assert "run.json that is none" in refused(capsys, "evaluate", f"hf://{NAME}")


def test_start_reads_them_too(run: Path, server: Hub) -> None:
    assert main(["push", str(run), NAME]) == 0
    planned = read_run(run)[0]
    tasks = planned.build_tasks(read_run(run)[1].labels)
    torch.manual_seed(9)
    network = planned.build_network(tasks)
    assert "whole network" in begin(network, tasks, [Path(f"hf://{NAME}")])
    begun = network.state_dict()
    for name, value in load_network(run)[2].state_dict().items():
        assert torch.equal(begun[name], value), name
    other = with_components(planned, {"decoder": "pad_net"}).build_network(tasks)
    with pytest.raises(polyptych.InputError, match="whose tasks are connected"):
        begin(other, tasks, [Path(f"hf://{NAME}")])
