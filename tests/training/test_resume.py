"""Resume is exact: an interrupted run ends in the same bits as one that was left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from polyptych.checkpoint import read_tensors

ARGUMENTS = ["--steps", "10", "--batch-size", "2", "--size", "48", "64", "--dataset.size", "48", "64",
             "--dataset.val-frames", "2", "--dataset.test-frames", "2", "--backbone.model", "test_resnet",
             "--backbone.drop-path", "0.1", "--decoder.head", "aspp", "--ema", "0.9", "--augment.scales", "1", "1.5",
             "--monitoring.save-every", "5", "--monitoring.validate-every", "4", "--monitoring.log-every", "1",
             "--monitoring.examples", "1", "--monitoring.trivial-samples", "4"]


def polyptych(*arguments: str | Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "polyptych", *map(str, arguments)], text=True,
                            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


def finished(process: subprocess.Popen) -> None:
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said


def events(folder: Path) -> list[dict]:
    """The log without what a clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clocks = {"seconds", "processor_seconds", "images_per_second"}
    return [{k: v for k, v in line.items() if k not in clocks} for line in lines]


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 180
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.005)


def assert_same_end(folder: Path, reference: Path) -> None:
    tensors, values = read_tensors(folder / "checkpoints" / "last.safetensors")
    expected, expected_values = read_tensors(reference / "checkpoints" / "last.safetensors")
    assert tensors.keys() == expected.keys()
    assert {name.partition(".")[0] for name in tensors} >= {"network", "average", "optimizer", "random"}
    different = [name for name in tensors if not torch.equal(tensors[name], expected[name])]
    assert different == []
    assert values["step"] == expected_values["step"] == 10
    assert values["progress"]["best_skill"] == expected_values["progress"]["best_skill"]
    assert values["python_random"] == expected_values["python_random"]
    assert events(folder) == events(reference)
    tests = [json.loads((f / "evaluation" / "test.json").read_text())["tasks"] for f in (folder, reference)]
    assert tests[0] == tests[1]


@pytest.fixture(scope="module", params=[0, 2], ids=["no workers", "two workers"])
def uninterrupted(request, tmp_path_factory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    arguments = [*ARGUMENTS, "--loading.workers", str(request.param)]
    if request.param:
        arguments.append("--optimizer.fused")
    finished(polyptych("train", "rooms", "--out", folder, *arguments))
    return folder, arguments


@pytest.mark.slow
def test_kill_and_resume(uninterrupted, tmp_path: Path) -> None:
    reference, arguments = uninterrupted
    folder = tmp_path / "run"
    process = polyptych("train", "rooms", "--out", folder, *arguments)
    wait_for(folder / "checkpoints" / "last.safetensors", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (folder / "report.html").exists()
    finished(polyptych("resume", folder))
    assert_same_end(folder, reference)
    assert (folder / "report.html").exists()


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(uninterrupted, tmp_path: Path) -> None:
    reference, arguments = uninterrupted
    folder = tmp_path / "run"
    process = polyptych("train", "rooms", "--out", folder, *arguments)
    wait_for(folder / "metrics.jsonl", process)
    while not (folder / "metrics.jsonl").read_text().count("\n"):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.skip("the run ended before the signal came")
    assert process.returncode == 130
    assert f"continue with `polyptych resume {folder}`" in said.splitlines()[-1]
    assert "Traceback" not in said
    finished(polyptych("resume", folder))
    assert_same_end(folder, reference)


@pytest.mark.slow
def test_a_signal_to_the_whole_group_is_one_line_too(uninterrupted, tmp_path: Path) -> None:
    """Schedulers signal every process, the loader's workers included."""
    reference, arguments = uninterrupted
    folder = tmp_path / "run"
    process = polyptych("train", "rooms", "--out", folder, *arguments)
    wait_for(folder / "checkpoints" / "last.safetensors", process)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    if process.returncode == 0:
        pytest.skip("the run ended before the signal came")
    assert process.returncode == 130 and "Traceback" not in said
    assert f"polyptych resume {folder}`" in said.splitlines()[-1]
    finished(polyptych("resume", folder))
    assert_same_end(folder, reference)
