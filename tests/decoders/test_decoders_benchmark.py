"""benchmarks/decoders.py takes every decoder of the catalog, and says why one is left out."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polyptych.backbones.timm import Timm
from polyptych.comparison.specification import with_network
from polyptych.decoders._base import CATALOG
from polyptych.recipes._catalog import load
from polyptych.run import Run

CPU = torch.device("cpu")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    yield importlib.import_module("decoders")
    for name in ("decoders", "network_step"):
        sys.modules.pop(name, None)


@pytest.fixture
def run() -> Run:
    return replace(load("nyuv2_ema_net")(), backbone=Timm.Config(model="test_resnet"), size=(64, 96))


@pytest.mark.parametrize("decoder", CATALOG.names())
def test_every_decoder_has_a_network_made_for_the_size(benchmark, run, decoder):
    made = with_network(run, benchmark.network_of(run, decoder))
    assert made.decoder.name == decoder
    assert getattr(made.decoder, "size", run.size) == run.size


@pytest.mark.slow
def test_measures_those_that_run_and_names_the_others(benchmark, run, tmp_path):
    subjects, skipped = benchmark.subjects_of(run, ["heads", "heads:width=-1", "pap_net"], 2, CPU)
    assert set(skipped) == {"heads:width=-1"} and skipped["heads:width=-1"].startswith("decoder.width: got -1")
    rows = benchmark.measure(subjects, 1, CPU)
    assert [row.decoder for row in rows] == ["heads", "pap_net"]
    assert rows[0].step_times == rows[0].inference_times == 1
    for row in rows:
        assert min(row.step, row.inference, row.step_peak, row.inference_peak, row.multiply_adds) > 0
        assert row.step_peak > row.inference_peak
    benchmark.plot(rows, "title", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000
