"""A comparison that is killed, stopped or partly fails ends in the table of one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

GRID = ["rooms", "--networks", "single,shared,shared+heads:head=aspp", "--seeds", "2", "--tasks", "semseg,depth",
        "--balancer", "equal"]
PAIR = ["rooms", "--networks", "shared", "--seeds", "2", *GRID[5:]]  # beside its reference
SMALL = ["--steps", "12", "--batch-size", "2", "--size", "48", "64", "--dataset.size", "48", "64",
         "--dataset.val-frames", "2", "--dataset.test-frames", "2", "--backbone.model", "test_resnet",
         "--monitoring.save-every", "3", "--monitoring.validate-every", "4", "--monitoring.log-every", "1",
         "--monitoring.examples", "1", "--monitoring.trivial-samples", "4"]
CLOCK = {"training_seconds", "processor_seconds", "cost", "runs", "machines", "commits", "version"}


def start(out: Path, *more: str, grid: list[str] = GRID) -> subprocess.Popen:
    """In a process group of its own, so that all of it can be killed at once."""
    return subprocess.Popen(
        [sys.executable, "-m", "polyptych", "compare", *grid, *SMALL, "--out", str(out), *more], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True)


def end(process: subprocess.Popen, code: int = 0) -> str:
    _, said = process.communicate(timeout=900)
    assert process.returncode == code, said
    return said


def table(out: Path) -> dict[str, Any]:
    """comparison.json without what a clock or a place decides."""
    record = json.loads((out / "comparison.json").read_text())
    methods = [{k: v for k, v in method.items() if k not in CLOCK} for method in record["methods"]]
    return {k: v for k, v in record.items() if k not in CLOCK} | {"methods": methods}


def progress(out: Path) -> int:
    """Lines in the logs of all runs."""
    return sum(len(path.read_text().splitlines()) for path in out.glob("runs/*/metrics.jsonl"))


def wait_for(out: Path, lines: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 600
    while progress(out) < lines:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    end(start(out))
    return out


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pair")
    end(start(out, grid=PAIR))
    return out


def test_killed_twice_at_random_moments(uninterrupted: Path, tmp_path: Path) -> None:
    moments = random.Random()
    seed = moments.randrange(10**6)
    moments.seed(seed)
    print(f"random moments of seed {seed}")
    whole = progress(uninterrupted)
    for low, high in ((1, whole // 2), (whole // 2, whole - 2)):
        process = start(tmp_path)
        wait_for(tmp_path, moments.randint(low, high), process)
        time.sleep(moments.uniform(0, 1))
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert not (tmp_path / "comparison.json").exists()
    said = end(start(tmp_path))
    assert "runs are finished already" in said
    assert table(tmp_path) == table(uninterrupted)
    assert (tmp_path / "comparison.csv").read_text().count("\n") == (
        uninterrupted / "comparison.csv").read_text().count("\n")


def test_only_the_parent_killed(pair: Path, tmp_path: Path) -> None:
    """Its worker dies too: the next comparison finds the folder free and goes on."""
    process = start(tmp_path, grid=PAIR)
    wait_for(tmp_path, 4, process)
    process.kill()
    process.communicate()
    end(start(tmp_path, grid=PAIR))
    assert table(tmp_path) == table(pair)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopped_and_gone_on(pair: Path, tmp_path: Path, how: signal.Signals) -> None:
    process = start(tmp_path, grid=PAIR)
    wait_for(tmp_path, 4, process)
    if how == signal.SIGINT:
        os.killpg(process.pid, how)  # a terminal sends it to every process
    else:
        process.send_signal(how)
    said = end(process, 130)
    assert said.splitlines()[-1] == "polyptych: stopped; everything is saved, the same command continues"
    end(start(tmp_path, grid=PAIR))
    assert table(tmp_path) == table(pair)


def test_a_run_that_fails_stops_no_other(pair: Path, tmp_path: Path) -> None:
    checkpoints = tmp_path / "runs" / "shared--equal--seed1" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "last.safetensors").write_bytes(b"half a file")
    said = end(start(tmp_path, grid=PAIR), 2)
    assert "shared · equal · seed 1: failed: " in said
    assert said.splitlines()[-1].startswith("polyptych: 1 runs failed, the first: shared · equal · seed 1: got ")
    assert "not a whole checkpoint" in said and "1 of 2 seeds" in (tmp_path / "comparison.html").read_text()
    (checkpoints / "last.safetensors").unlink()
    assert "3 of 4 runs are finished already" in end(start(tmp_path, grid=PAIR))
    assert table(tmp_path) == table(pair)


def test_the_grid_can_grow_but_not_change(pair: Path) -> None:
    before = (pair / "comparison.json").read_text()
    said = end(start(pair, grid=[*PAIR[:4], "3", *PAIR[5:]]))
    assert "4 of 6 runs are finished already" in said
    assert json.loads((pair / "comparison.json").read_text())["seeds"] == [0, 1, 2]
    (pair / "comparison.json").write_text(before)
    said = end(start(pair, "--batch-size", "4", grid=PAIR), 2)
    assert said.count("\n") == 1 and "a run of another recipe (batch_size is 2); needs batch_size 4" in said


def test_on_ray_with_two_workers_one_of_which_is_killed(pair: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install 'polyptych[cluster]'")
    launcher = ("import ray, sys; ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, "
                "logging_level='ERROR'); from polyptych.cli import main; sys.exit(main(sys.argv[1:]))")
    process = subprocess.Popen(
        [sys.executable, "-c", launcher, "compare", *PAIR, *SMALL, "--loading.workers", "0", "--out", str(tmp_path),
         "--on", "ray"], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"})
    wait_for(tmp_path, 12, process)
    pids = worker_pids(tmp_path)
    assert len(pids) == 2, pids
    victim, log = next(iter(pids.items()))
    os.kill(victim, signal.SIGKILL)
    said = end(process)
    assert log.read_text().count("Ray worker, process") >= 2  # it was started again
    assert "failed" not in said
    # The workers of the loader do not change what is learned, only run.json.
    found, expected = table(tmp_path), table(pair)
    assert found["methods"] == expected["methods"] and found["tasks"] == expected["tasks"]


def worker_pids(out: Path) -> dict[int, Path]:
    """Ray workers that are training, with their logs."""
    found = {}
    for log in out.glob("runs/*/worker.log"):
        pid = int(log.read_text().split("Ray worker, process ")[-1].split()[0])
        if not (log.parent / "report.html").exists() and Path(f"/proc/{pid}").exists():
            found[pid] = log
    return found
