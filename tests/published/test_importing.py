"""`polyptych import` and what its run folder does; files that are almost right are one line each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_twins import NAMES, SEGNET, THREE, shared, theirs
from torch import Tensor

import polyptych
from hub_server import serving, use
from polyptych.cli import main
from polyptych.importing import load_published


def split(channels: dict[str, int] = THREE) -> dict[str, Tensor]:
    """MTAN's split network, tiny, as its program would save it."""
    torch.manual_seed(1)
    network = polyptych.network("segnet", channels, **SEGNET).eval()
    return theirs(network.state_dict(), shared(list(channels)), list(channels))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NYUv2 as MTAN's program reads it, made up."""
    root = tmp_path_factory.mktemp("data") / "nyuv2"
    assert main(["data", "fixture", "nyuv2", str(root), "--layout", "mtan"]) == 0
    return root


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    folder = tmp_path_factory.mktemp("imported")
    torch.save({"model": split(), "optimizer": {"state": {}}, "epoch": 3}, folder / "split.pth.tar")
    assert main(["import", str(folder / "split.pth.tar"), "--out", str(folder / "run"), "--dataset.root", str(data),
                 "--size", "64", "96"]) == 0
    return folder / "run"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("polyptych: "), said
    return said


def test_the_run_says_what_it_is(imported: Path) -> None:
    origin = json.loads((imported / "origin.json").read_text())
    assert origin["network"] == "split" and origin["repository"].endswith("lorenmt/mtan") and origin["license"] == "MIT"
    network = polyptych.load(imported).network
    assert network.mean.flatten().tolist() == [0, 0, 0] and network.std.flatten().tolist() == [1, 1, 1]


def test_it_evaluates_predicts_exports_profiles_goes_out_and_continues(
        imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["evaluate", str(imported)]) == 0
    found = json.loads((imported / "evaluation/test.json").read_text())
    assert found["protocol"].startswith("nyuv2-13") and list(found["tasks"]) == NAMES
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)).save(photo)
    assert main(["predict", str(imported), str(photo), "--out", str(tmp_path / "out"), "--arrays"]) == 0
    assert main(["export", str(imported), "--format", "torch", "--out", str(tmp_path / "model.pt2")]) == 0
    assert main(["predict", str(tmp_path / "model.pt2"), str(photo), "--out", str(tmp_path / "out2"), "--arrays"]) == 0
    with serving() as hub:
        use(hub, tmp_path / "home", monkeypatch)
        assert main(["push", str(imported), "anna/split"]) == 0
        assert main(["predict", "hf://anna/split", str(photo), "--out", str(tmp_path / "out3"), "--arrays"]) == 0
    assert "lorenmt/mtan" in hub.repositories["anna/split"]["README.md"].decode()
    assert json.loads(hub.repositories["anna/split"]["evaluation/test.json"])["tasks"] == found["tasks"]
    for task in NAMES:
        ours, exported, fetched = (np.load(tmp_path / folder / f"photo_{task}.npy") for folder in (
            "out", "out2", "out3"))
        np.testing.assert_allclose(ours, exported, atol=1e-4)
        assert np.array_equal(ours, fetched)
    assert main(["profile", str(imported), "--seconds", "0.1", "--repeats", "1"]) == 0
    record = json.loads((imported / "run.json").read_text())
    record["run"] |= {"steps": 1, "batch_size": 2}
    (imported / "run.json").write_text(json.dumps(record))
    assert main(["resume", str(imported)]) == 0
    assert (imported / "report.html").is_file()


def test_half_precision_double_precision_and_a_prefix(tmp_path: Path) -> None:
    state = split()
    image = torch.rand(1, 3, 32, 32)
    torch.save(state, tmp_path / "plain.pth")
    torch.save({f"module.model.{key}": value.half() if value.is_floating_point() else value
                for key, value in state.items()}, tmp_path / "half.pth")
    torch.save({key: value.double() if value.is_floating_point() else value for key, value in state.items()},
               tmp_path / "double.pth")
    plain, half, double = (load_published(tmp_path / f"{name}.pth").network for name in ("plain", "half", "double"))
    assert double.mean.dtype == torch.float64 and half.mean.dtype == torch.float32
    with torch.inference_mode():
        depth = plain(image)["depth"]
        assert torch.allclose(depth, double(image.double())["depth"].float(), atol=1e-5)
        assert torch.allclose(depth, half(image)["depth"], atol=0.05 * float(depth.abs().max()) + 1e-3)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch was_executed",)


def changed(**entries: Any) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    """A file with entries in place of some, or without them (None); dots are written as double underscores."""
    def change(state: dict[str, Tensor]) -> dict[str, Any]:
        named = {key.replace("__", "."): value for key, value in entries.items()}
        return {key: value for key, value in (state | named).items() if value is not None}
    return change


ALMOST: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "another number of classes": (changed(pred_task1__1__weight=torch.zeros(6, 4, 1, 1),
                                          pred_task1__1__bias=torch.zeros(6)), "6 classes of semseg"),
    "a task half missing": (changed(pred_task2__0__weight=None), "without 1 of"),
    "a tensor of another shape": (changed(encoder_block__1__0__weight=torch.zeros(9, 4, 3, 3)),
                                  "of shape (9, 4, 3, 3)"),
    "half of the network": (lambda state: {key: value for key, value in state.items() if "block_dec" not in key},
                            "without"),
    "another network": (lambda state: {"fc.weight": torch.zeros(2, 2)}, "no network that is known here (1 tensors: "),
    "no tensors": (lambda state: {"epoch": 3}, "without tensors"),
    "a hostile pickle": (lambda state: {"model": state, "args": Hostile()}, "posix.system"),
}


@pytest.mark.parametrize("name", ALMOST)
def test_files_that_are_almost_right(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    change, says = ALMOST[name]
    torch.save(change(split()), "file.pth")
    assert says in refused(capsys, "import", "file.pth", "--out", "run")
    assert not Path("run").exists() and not Path("was_executed").exists()


def test_files_that_are_no_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = tmp_path / "whole.pth"
    torch.save(split(), whole)
    contents = {"half.pth": whole.read_bytes()[:5000], "page.pth": b"<!DOCTYPE html><html>", "empty.pth": b""}
    says = {"half.pth": "interrupted download", "page.pth": "a web page", "empty.pth": "empty"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        assert says[name] in refused(capsys, "import", str(tmp_path / name), "--out", str(tmp_path / "run"))
    assert "no such file" in refused(capsys, "import", str(tmp_path / "none.pth"), "--out", str(tmp_path / "run"))
    assert "--out" in refused(capsys, "import", str(whole), "--out", str(tmp_path))


def test_what_a_file_leaves_open_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = split({"semseg": 6, "depth": 1})
    torch.save(state, tmp_path / "six.pth")
    command = ["import", str(tmp_path / "six.pth"), "--out", str(tmp_path / "run")]
    assert "--classes semseg=NAME" in refused(capsys, *command)
    assert "6, the channels" in refused(capsys, *command, "--classes", "semseg=a,b")
    assert "chan_nheads" in refused(capsys, *command, "--dataset", "none", "--assume", "chan_nheads=4")
    assert "2 tasks" in refused(capsys, *command, "--dataset", "none", "--tasks", "semseg")
    assert main([*command, "--classes", "semseg=a,b,c,d,e,f", "--tasks", "parts,depth"]) == 2  # no class of parts
    capsys.readouterr()
    assert main([*command, "--classes", "semseg=a,b,c,d,e,f"]) == 0
    assert polyptych.load(tmp_path / "run").tasks["semseg"].labels.classes == tuple("abcdef")
    assert "neither a root nor a description" in refused(capsys, "evaluate", str(tmp_path / "run"))


def test_whole_training_checkpoints_keep_their_secrets(tmp_path: Path) -> None:
    """Optimizers, configurations and callbacks lie beside the tensors; nothing of them is needed or executed."""
    import argparse

    torch.save({"state_dict": split(), "args": argparse.Namespace(lr=0.1), "best_result": np.float64(0.5)},
               tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_published(tmp_path / "old.pth").tasks.keys() == set(NAMES)
