"""benchmarks/accelerator.py in small form: on the CPU it finds nothing wrong, and it says what it did not reach."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest


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
    monkeypatch.setattr(benchmark, "variants", lambda *_: iter([("left out", None)]))
    assert benchmark.main(["--device", "cpu", "--small", "--minutes", "-1"]) == 1
    said = capsys.readouterr().out
    assert "FAILED: losses of another world" in said and "not reached in -1 minutes: left out" in said
