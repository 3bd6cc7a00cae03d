"""Runs that are killed again and again, at any moment, end in the same bits as runs that were left alone."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from test_resume import events, finished, polyptych

from polyptych.checkpoint import read_tensors

STEPS, KILLS = 30, 5
SMALL = ["--tasks", "semseg,depth", "--steps", str(STEPS), "--batch-size", "2", "--size", "32", "48", "--dataset.size",
         "32", "48", "--dataset.val-frames", "2", "--dataset.test-frames", "2", "--backbone.model", "test_resnet",
         "--monitoring.save-every", "2", "--monitoring.validate-every", "7", "--monitoring.log-every", "1",
         "--monitoring.examples", "1", "--monitoring.trivial-samples", "2", "--execution.device", "cpu"]
CONFIGURATIONS = {
    "average": ["--ema", "0.9", "--backbone.drop-path", "0.1", "--augment.scales", "1", "1.5"],
    "gradients": ["--balancer", "nash_mtl", "--accumulate", "2", "--loading.workers", "1"],
    "float16": ["--execution.precision", "float16", "--optimizer.kind", "sgd", "--clip", "1"],
    "state": ["--balancer", "famo", "--execution.precision", "bfloat16", "--select", "best", "--decoder.head", "aspp"],
}


def lines(folder: Path) -> int:
    log = folder / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_killed_at_any_moment(configuration: str, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = [*SMALL, *CONFIGURATIONS[configuration]]
    finished(polyptych("train", "rooms", "--out", whole, *arguments))
    moments, killed = random.Random(configuration), 0
    process = polyptych("train", "rooms", "--out", parts, *arguments)
    while killed < KILLS:
        wanted = lines(parts) + moments.randint(1, 3)
        while process.poll() is None and lines(parts) < wanted:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.2))  # anywhere in the steps that follow: computing, saving, validating
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += 1
        process = polyptych("resume", parts)
    finished(process)
    assert killed == KILLS
    (tensors, values), (expected, expected_values) = (
        read_tensors(folder / "checkpoints" / "last.safetensors") for folder in (parts, whole))
    assert tensors.keys() == expected.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], expected[name])] == []
    for record in (values, expected_values):
        del record["progress"]["seconds"], record["progress"]["processor_seconds"]
    assert values == expected_values and events(parts) == events(whole)
    tests = [json.loads((folder / "evaluation" / "test.json").read_text())["tasks"] for folder in (parts, whole)]
    assert tests[0] == tests[1]


@pytest.mark.slow
def test_of_two_that_resume_one_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = polyptych("train", "rooms", "--out", folder, *SMALL)
    while not (folder / "checkpoints" / "last.safetensors").exists():
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    both = [polyptych("resume", folder) for _ in range(2)]
    said = [process.communicate(timeout=240)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 2], said
    refused = codes.index(2)
    assert f"a run that process {both[1 - refused].pid} on " in said[refused] and "Traceback" not in said[refused]


@pytest.mark.slow
def test_a_signal_in_the_final_evaluation_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = polyptych("train", "rooms", "--out", folder, *SMALL, "--dataset.test-frames", "400")
    while not (folder / "evaluation" / "val.json").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "Traceback" not in said
    assert f"measure and report the run with `polyptych resume {folder}`" in said.splitlines()[-1]
