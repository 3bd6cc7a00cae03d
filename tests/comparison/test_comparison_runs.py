"""Training the grid: what is done is not done again, nothing is lost, and bad input is one line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from comparison_runs import pretend_finished, two_tasks

from polyptych.cli import main
from polyptych.comparison import costs, on_ray, worker
from polyptych.comparison.board import Board
from polyptych.comparison.compare import compare
from polyptych.comparison.grid import make_grid
from polyptych.comparison.on_local import Device, devices
from polyptych.comparison.progress import Progress, time_left
from polyptych.comparison.worker import Request, work
from polyptych.prediction import examples
from polyptych.profiling.profile import Cost
from polyptych.run import read_run

SMALL = ["--size", "48", "64", "--dataset.size", "48", "64", "--backbone.model", "test_resnet", "--tasks", "depth"]


@pytest.fixture
def cheap(monkeypatch) -> list[int]:
    """Costs that are not measured; the list counts how often one was asked for."""
    asked: list[int] = []

    def cost(network, size, device, precision) -> Cost:
        asked.append(sum(p.numel() for p in network.parameters()))
        return Cost(asked[-1], 10**9, 10**7, 10**8, 0.01, 100.0, 0)

    monkeypatch.setattr(costs, "cost", cost)
    return asked


def test_from_runs_to_the_table_and_again_without_training(small_run, tmp_path: Path, cheap, monkeypatch) -> None:
    base = replace(two_tasks(small_run), steps=1, monitoring=replace(small_run.monitoring, examples=1))
    monkeypatch.setattr(sys, "argv", ["polyptych", "compare", "rooms"])
    for entry in make_grid(base, tmp_path, [], [], [5]).entries:
        work(Request.of(entry))
        assert read_run(entry.folder)[0] == entry.run
        assert "polyptych compare rooms" in (entry.folder / "environment.json").read_text()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.*") if path.is_file()}
    with (tmp_path / "said").open("w+") as said:
        found = compare(base, tmp_path, seeds=[5], stream=said)
    assert (tmp_path / "said").read_text() == "2 of 2 runs are finished already\n"
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert [method.network for method in found.methods] == ["single", "shared+heads"]
    assert found.methods[1].cost.parameters < found.methods[0].cost.parameters and len(cheap) == 2
    text = (tmp_path / "comparison.html").read_text()
    assert "Predictions of seed 5" in text and text.count("<img") == 1 + 3 * 2  # rows x tasks
    assert main(["compare", "--from", *(method.runs[5] for method in found.methods),
                 "--out", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "comparison.json").read_text())
    assert again["methods"][1]["delta_mtl"]["mean"] == pytest.approx(found.methods[1].delta_mtl.mean)
    compare(base, tmp_path, seeds=[5])
    assert len(cheap) == 4  # once more for the other folder, never for the same


def test_a_tested_run_without_report_is_not_tested_again(small_run, tmp_path: Path, monkeypatch) -> None:
    entry = make_grid(two_tasks(small_run), tmp_path, [], [], [0]).entries[0]
    (pretend_finished(entry, 1.0, 1.0) / "report.html").unlink()
    monkeypatch.setattr(worker, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(examples, "write_examples", lambda folder: None)
    monkeypatch.setattr(sys, "argv", [*sys.argv])
    assert entry.tested and not entry.finished
    work(Request.of(entry))
    assert entry.finished


def test_time_left(small_run, tmp_path: Path) -> None:
    single, shared = make_grid(replace(two_tasks(small_run), steps=100), tmp_path, [], [], [0]).entries
    assert time_left([Progress(single)], 1) is None
    # 50 steps at 0.1 s, then 100 of the same network, then 100 at the mean of all.
    found = [Progress(single, "training", 50, 5.0), Progress(single), Progress(shared)]
    assert time_left(found, 1) == pytest.approx(5 + 10 + 10)
    assert time_left(found, 2) == pytest.approx(12.5) and time_left(found, 9) == pytest.approx(10)
    assert time_left([Progress(single, "finished", 100, 5.0)], 1) == 0


def test_progress_is_read_from_the_log(small_run, tmp_path: Path, capsys) -> None:
    grid = make_grid(replace(two_tasks(small_run), steps=9), tmp_path, [], [], [0])
    board = Board(grid.entries)
    run = board.runs[0]
    with board:
        run.state = "training"
        run.entry.folder.mkdir(parents=True)
        metrics = {"semseg": {"mIoU": 12.5, "accuracy": 40.0}, "depth": {"RMSE": 0.75}}
        lines = [{"event": "train", "step": 4, "seconds": 2.0}, {"event": "validation", "step": 4, "metrics": metrics},
                 {"event": "train", "step": 6, "seconds": 3.0}]
        text = "".join(json.dumps(line) + "\n" for line in lines) + '{"event": "tra'  # being written
        (run.entry.folder / "metrics.jsonl").write_text(text)
        board.refresh()
        assert (run.step, run.seconds, run.validation) == (6, 3.0, {"semseg": 12.5, "depth": 0.75})
        run.state, run.error = "failed", "disk is full"
    said = capsys.readouterr().err
    assert "single · fixed · seed 0: step 6/9  semseg mIoU 12.5  depth RMSE 0.75\n" in said
    assert said.endswith("single · fixed · seed 0: failed: disk is full\n")


def test_the_board_of_a_terminal_has_a_row_per_run(small_run, tmp_path: Path) -> None:
    grid = make_grid(two_tasks(small_run), tmp_path, [], [], [0, 1])
    board = Board(grid.entries)
    board.runs[1].step, board.runs[1].seconds, board.runs[1].state = 1, 2.0, "training"
    board.runs[2].state, board.runs[2].error = "failed", "no [room]"
    board.console.width = 150
    with board.console.capture() as capture:
        board.console.print(board.picture())
    text = capture.get()
    assert text.count("waiting") == 3 and "1/2" in text and "no [room]" in text  # two rows, and the footer
    assert "depth RMSE" in text and "about 10 s left" in text  # half of one run of 4 s, and two more


def test_one_process_per_cuda_device(small_run, monkeypatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices(small_run) == [Device("0"), Device("1")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert devices(small_run) == [Device("3"), Device("5")]
    for name in ("cpu", "cuda:1"):
        assert devices(replace(small_run, execution=replace(small_run.execution, device=name))) == [Device()]


def test_what_a_ray_task_asks_for(small_run) -> None:
    run = replace(small_run, loading=replace(small_run.loading, workers=3))
    big = {"CPU": 16.0, "GPU": 2.0}
    assert on_ray.resources(run, [big]) == {"num_cpus": 4.0, "num_gpus": 1.0}
    assert on_ray.resources(run, [{"CPU": 2.0}]) == {"num_cpus": 2.0, "num_gpus": 0.0}
    on_cpu = replace(run, execution=replace(run.execution, device="cpu"))
    assert on_ray.resources(on_cpu, [big]) == {"num_cpus": 4.0, "num_gpus": 0.0}
    assert on_ray.side_by_side({"num_cpus": 4.0, "num_gpus": 1.0}, [big, {"CPU": 16.0}]) == 2
    assert on_ray.side_by_side({"num_cpus": 4.0, "num_gpus": 0.0}, [big, big]) == 8


@pytest.mark.parametrize(("arguments", "parts"), [
    (["rooms", "--networks", "shared,shard"], ["network 'shard'", "nearest: shared"]),
    (["rooms", "--networks", "heads:hed=fpn"], ["an unknown option 'hed'", "nearest: head"]),
    (["rooms", "--balancers", "equl"], ["balancer 'equl'", "nearest: equal"]),
    (["rooms", "--seeds", "4,7,4"], ["--seeds: got 4 twice"]),
    (["rooms", "--seeds", "none"], ["--seeds: got 'none'", "`--seeds 3`"]),
    (["rooms", "--seed", "4"], ["--seed: got one seed", "use --seeds"]),
    (["rooms", "--on", "slurm"], ["--on: got 'slurm'; needs local or ray"]),
    (["rooms", "--step", "4"], ["--step: got an unknown option", "nearest: --steps", "polyptych compare --help"]),
    (["rooms", "--networks"], ["--networks: got no value"]),
    (["romos"], ["recipe 'romos'", "nearest: rooms"]),
    ([], ["polyptych compare: got no recipe"]),
    (["--from"], ["--from: got no folder"]),
    (["--from", "nowhere"], ["nowhere/run.json: got no such file"]),
    (["--from", "nowhere", "--steps", "3"], ["--steps: got an option that trains"]),
])
def test_bad_input_is_one_line_and_exit_code_2(capsys, tmp_path: Path, monkeypatch, arguments: list[str],
                                               parts: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments, *(SMALL if arguments[:1] == ["rooms"] else [])]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("polyptych: ") and all(part in said for part in parts), said
    assert list(tmp_path.iterdir()) == []


def test_ray_that_is_not_installed_is_said_before_anything_is_made(capsys, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "rooms", *SMALL, "--on", "ray"]) == 2
    assert capsys.readouterr().err == ("polyptych: --on ray: got no ray package; needs the cluster extra; run "
                                       "`pip install 'polyptych[cluster]'`\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_worker_dies_with_its_parent(tmp_path: Path) -> None:
    """The parent is killed, so that it cannot tell anyone."""
    child = "import os, sys, time; from polyptych.comparison.worker import die_with; die_with(int(sys.argv[1])); " \
            "open(sys.argv[2], 'w').write(str(os.getpid())); time.sleep(60)"
    parent = f"import os, subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}, str(os.getpid()), " \
             f"{str(tmp_path / 'pid')!r}])"
    process = subprocess.Popen([sys.executable, "-c", parent])
    _until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    process.kill()
    process.wait()
    pid = (tmp_path / "pid").read_text()
    _until(lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text())


def _until(condition, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
