"""benchmarks/accelerator.py in small form: on the CPU it finds nothing wrong, and it says what it did not reach."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from polyptych.backbones.timm import Timm
from polyptych.data.preparation.facts import fixtures
from polyptych.recipes._catalog import load


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    yield importlib.import_module("accelerator")
    sys.modules.pop("accelerator", None)


@pytest.mark.slow
def test_small_form(benchmark, monkeypatch, capsys):
    every = list(benchmark.variants("cpu", True))
    assert {label.partition(" ")[2] for label, _ in every if label.startswith("decoder ")} == set(
        benchmark.DECODERS.names()) - {"heads"}
    monkeypatch.setattr(benchmark, "variants", lambda *_: iter(every[:1]))
    assert benchmark.main(["--device", "cpu", "--small"]) == 0
    assert "| equal, heads, float32 |" in capsys.readouterr().out


def test_a_device_that_computes_something_else_fails(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "check_losses", lambda *_: "losses of another world")
    monkeypatch.setattr(benchmark, "check_recomputation", lambda *_: "")
    monkeypatch.setattr(benchmark, "loading_speed", lambda *_: 0.0)
    monkeypatch.setattr(benchmark, "variants", lambda *_: iter([("left out", None)]))
    assert benchmark.main(["--device", "cpu", "--small", "--minutes", "-1"]) == 1
    said = capsys.readouterr().out
    assert "FAILED: losses of another world" in said and "not reached in -1 minutes: left out" in said


@pytest.mark.slow
def test_the_recipe_on_packed_frames(benchmark, monkeypatch, capsys, tmp_path):
    (tmp_path / "nyuv2").mkdir()
    fixtures("nyuv2")["mtan"](tmp_path / "nyuv2")
    run = replace(load("nyuv2_mtan")(), backbone=Timm.Config(model="test_resnet"), size=(32, 64), batch_size=2)
    monkeypatch.setattr(benchmark, "load", lambda name: lambda: run)
    monkeypatch.setattr(benchmark.os, "cpu_count", lambda: 0)
    benchmark.train_nyuv2(tmp_path / "nyuv2", "cpu", 1.0)
    said = capsys.readouterr()
    assert "10 steps of 2 images" in said.out and "semseg" in said.out + said.err


@pytest.mark.slow
def test_recomputation_that_draws_anew_is_noticed(benchmark, monkeypatch):
    monkeypatch.setattr("polyptych.devices.set_random_state", lambda *_: None)
    assert "weights differ" in benchmark.check_recomputation("cpu", True)
