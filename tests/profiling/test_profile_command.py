"""`polyptych profile` from the command line, and profiles of runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polyptych.cli import main
from polyptych.errors import InputError
from polyptych.profiling.profile import profile_run
from polyptych.recipes.nyuv2 import nyuv2
from polyptych.run import Facts, Run, with_tasks, write_run
from polyptych.types import LabelInfo

FAST = ["--repeats", "1", "--seconds", "0.01", "--backbone.model", "test_resnet", "--device", "cpu"]


def run_without_data(folder: Path) -> Run:
    """A run's folder as training leaves it, on a machine that lacks its data."""
    run = with_tasks(nyuv2(), ["semseg", "depth"])
    run = replace(run, backbone=replace(run.backbone, model="test_resnet"), size=(64, 96))
    labels = {"semseg": LabelInfo(classes=tuple("abcde")), "depth": LabelInfo(unit="m")}
    write_run(folder / "run.json", run, Facts("nyuv2-5", labels))
    return run


def test_recipe_as_tables_and_json(tmp_path, capsys):
    file = tmp_path / "profile.json"
    assert main(["profile", "rooms", *FAST, "--tasks", "semseg,depth", "--size", "64", "96", "--json", str(file)]) == 0
    said = capsys.readouterr().out
    for words in ("64x96", "backbone", "multiply-adds", "semseg alone", "activations, training", "latency",
                  "CPU thread", "not counted by convention"):
        assert words in said
    data = json.loads(file.read_text())
    assert set(data["sharing"]["private"]) == {"semseg", "depth"} and data["setting"]["size"] == [64, 96]
    assert data["parameters"] == sum(part["parameters"] for part in data["parts"])


def test_json_alone_and_other_components_without_data(capsys):
    assert main(["profile", "nyuv2", *FAST, "--encoder", "single", "--channels", "semseg=7,depth=1,normals=3",
                 "--decoder.head", "fpn", "--size", "64", "64", "--no-training", "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["sharing"]["shared"] == 0 and set(data["sharing"]["private"]) == {"semseg", "depth", "normals"}
    assert data["memory"]["training"] is None


def test_folder_of_a_run_needs_no_data(tmp_path, capsys):
    run_without_data(tmp_path)
    assert main(["profile", str(tmp_path), "--repeats", "1", "--seconds", "0.01", "--json", "-"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["setting"]["size"] == [64, 96]
    found = profile_run(tmp_path, repeats=1, seconds=0.01, training=False)
    assert found.multiply_adds == data["multiply_adds"] and found.setting.size == (64, 96)


def test_size_of_the_data_where_the_run_has_none(small_run):
    found = profile_run(replace(small_run, size=None), repeats=1, seconds=0.01, training=False)
    assert found.setting.size == (48, 64) and len(found.sharing.private) == 7
    with pytest.raises(InputError, match="--size: got nothing; needs height and width"):
        profile_run(replace(small_run, size=None), channels={"a": 1})


@pytest.mark.parametrize(("arguments", "text"), [
    ([], "polyptych profile: got neither a recipe nor a run"),
    (["romos"], "recipe or run 'romos': got neither a recipe nor a folder; needs the folder of a run, or one of"),
    (["rooms", "--size", "0", "64", *FAST], "--size: got (0, 64); needs a positive number"),
    (["rooms", "--device", "gpu"], "--device: got 'gpu'; needs one of auto, cpu"),
    (["rooms", "--channels", "semseg"], "--channels: got 'semseg'; needs every task once, with a number"),
    (["rooms", "--channels", "a=1,a=2"], "--channels: got 'a=2'"),
    (["rooms", "--channels", "a=0"], "--channels a: got 0; needs a positive number"),
    (["rooms", "--channels", "a=1", "--tasks", "depth"], "--channels: got --tasks as well"),
    (["rooms", "--encoder", "sharde"], "encoder 'sharde': got an unknown name"),
    (["nyuv2", "--dataset.root", "/nowhere"], "profile without the data: --channels semseg=N,depth=N,"),
])
def test_refusals_are_one_line(arguments, text, capsys):
    assert main(["profile", *arguments]) == 2
    said = capsys.readouterr().err
    assert text in said and said.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
def test_a_missing_accelerator_is_one_line(capsys):
    assert main(["profile", "rooms", "--device", "cuda"]) == 2
    assert "--device: got 'cuda', which is not there; needs one of auto, cpu; choose one" in capsys.readouterr().err


def test_broken_folders_and_unknown_tasks(tmp_path, capsys):
    assert main(["profile", str(tmp_path)]) == 2
    assert "run.json: got no such file" in capsys.readouterr().err
    run_without_data(tmp_path)
    assert main(["profile", str(tmp_path), "--tasks", "normals"]) == 2
    assert "task 'normals': got a run that was recorded without it; needs one of semseg, depth" in \
        capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_on_an_accelerator(tmp_path):
    run_without_data(tmp_path)
    for precision in ("float32", "bfloat16"):
        here = profile_run(tmp_path, device="cuda", precision=precision, repeats=5, seconds=1.0)
        there = profile_run(tmp_path, device="cpu", repeats=1, seconds=0.01)
        assert here.multiply_adds == there.multiply_adds and here.sharing == there.sharing
        assert 0 < here.memory.inference < here.memory.training
        assert here.latency.median > 0 and len(here.throughput.rates) > 3
