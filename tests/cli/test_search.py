"""polyptych search: what it says, that it can be stopped anywhere, and what it leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from polyptych.backbones.timm import Timm
from polyptych.checkpoint import read_tensors
from polyptych.cli import (
    main,
    train,  # noqa: F401  (the help opens with the docstring of the command)
)
from polyptych.cli._parsing import parse
from polyptych.run import Run
from polyptych.search import compile
from polyptych.search.procedure.settings import Search

SMALL = ["--steps", "4", "--batch-size", "2", "--size", "48", "64", "--dataset.size", "48", "64",
         "--dataset.val-frames", "2", "--dataset.test-frames", "2", "--backbone.model", "test_resnet",
         "--monitoring.examples", "1", "--monitoring.trivial-samples", "4", "--monitoring.save-every", "1",
         "--monitoring.log-every", "1", "--monitoring.validate-every", "4", "--loading.workers", "0",
         "--decoder.width", "8", "--tasks", "semseg,depth", "--candidates", "3", "--calibration", "1"]
FEW = ["--baselines", "single,tree", "--random", "1", "--finalists", "1"]


@pytest.mark.parametrize(("arguments", "parts"), [
    ([], ["no recipe", "rooms", "resume, inspect or report"]),
    (["romos"], ["recipe 'romos'", "nearest: rooms"]),
    (["rooms", "--space", "tre"], ["--space: got 'tre'", "tree"]),
    (["rooms", "--budget", "flops=fast"], ["--budget flops: got 'fast'", "flops=1.5x"]),
    (["rooms", "--candidates", "many"], ["--candidates"]),
    (["rooms", "--baselines", "single,randm"], ["--baselines: got 'randm'", "conflict"]),
    (["rooms", "--skip", "maybe"], ["--skip: got 'maybe'", "yes or no"]),
    (["rooms", "--steps", "0"], ["--steps: got 0"]),
    (["rooms", "--budget", "bogus=3"], ["polyptych: --budget: got 'bogus'; needs one of flops"]),
    (["inspect", "deep.json"], ["deep.json: got a file that is not JSON"]),
    (["inspect", "."], [".: got a file that cannot be read (Is a directory)"]),
    (["report", "deep.json"], ["deep.json: got no such folder"]),
    (["rooms", "--out", "deep.json", *SMALL], ["deep.json"]),
    (["rooms", "--optimizer.lerning-rate", "1"], ["unknown option", "nearest: --optimizer.learning-rate"]),
    (["rooms", "--budget", "params=0.1x", *SMALL], ["--budget: got params=0.1x, which no policy meets"]),
    (["resume"], ["polyptych search resume: got nothing"]),
    (["resume", "nowhere"], ["nowhere/search.json: got no such file"]),
    (["report", "a", "b"], ["polyptych search report: got a b"]),
    (["inspect"], ["a policy file"]),
    (["inspect", "none.json"], ["none.json: got no such file"]),
])
def test_bad_input_is_one_line(capsys, tmp_path, monkeypatch, arguments: list[str], parts: list[str]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("deep.json").write_text("[" * 200_000)
    assert main(["search", *arguments]) == 2
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["deep.json"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said
    for part in parts:
        assert part in said, said


def test_help_states_every_option(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["search", "rooms", "--help"])
    said = capsys.readouterr().out
    for part in ("--space", "--budget", "separate networks", "--policy-steps", "resume FOLDER",
                 "--optimizer.learning-"):
        assert part in said


def test_no_option_is_one_of_the_search_and_of_its_runs() -> None:
    """They stand side by side on the command line."""
    assert not {field.name for field in fields(Run)} & {field.name for field in fields(Search)}


def test_answers_and_lists_on_the_command_line() -> None:
    options = parse(Search, ["--skip", "no", "--baselines", "single,tree"], "train")
    assert options.skip is False and options.baselines == ("single", "tree")
    assert parse(Search, ["--baselines", "none"], "train").baselines == ()
    assert parse(Search, [], "train") == Search()


def test_inspect(capsys, tmp_path: Path) -> None:
    space = compile(Timm.Config(model="test_resnet").build(), ("semseg", "depth")).space
    space.bottom_shared(4).write(tmp_path / "p.json")
    assert main(["search", "inspect", str(tmp_path / "p.json")]) == 0
    said = capsys.readouterr().out
    assert "(4 units)  [semseg, depth]" in said and "└─" in said and str(tmp_path / "p.png") in said
    assert (tmp_path / "p.png").stat().st_size > 3000
    (tmp_path / "p.json").write_text('{"format": 1, "tasks": []}')
    assert main(["search", "inspect", str(tmp_path / "p.json")]) == 2


def command(*arguments: str | Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "polyptych", "search", *map(str, arguments)], text=True,
                            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


def finished(process: subprocess.Popen) -> str:
    out, said = process.communicate(timeout=900)
    assert process.returncode == 0, said
    return out


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("search") / "whole"
    out = finished(command("rooms", "--out", folder, *SMALL, *FEW))
    assert str(folder / "search.html") in out
    return folder


def numbers(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.mark.usefixtures("without_plots")
def test_the_least_search_from_end_to_end(capsys, tmp_path: Path) -> None:
    few = {"--steps": "1", "--baselines": "shared", "--finalists": "1", "--out": str(tmp_path / "found"),
           "--candidates": "1", "--tasks": "depth,normals"}
    arguments = [*SMALL, "--baselines", "", "--finalists", "", "--out", ""]
    for place, flag in enumerate(arguments):
        if flag in few:
            arguments[place + 1] = few[flag]
    assert main(["search", "rooms", *arguments]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "found" / "search.html")
    assert [network["name"] for network in numbers(tmp_path / "found")["networks"]] == ["searched-1", "shared"]


@pytest.mark.slow
def test_a_search_leaves_runs_policies_and_a_report(whole: Path) -> None:
    names = [network["name"] for network in numbers(whole)["networks"]]
    assert names == ["searched-1", "single", "tree-0"]
    for name in names:
        run = json.loads((whole / "runs" / f"{name}--seed0" / "run.json").read_text())["run"]
        assert run["encoder"]["name"] == ("single" if name == "single" else "searched")
        assert (whole / "policies" / f"{name}.json").exists()
    assert len(json.loads((whole / "ranking.json").read_text())) >= 3
    assert not (whole / "warmup" / "evaluation").exists()
    assert finished(command("report", whole)).splitlines()[-1] == str(whole / "search.html")
    policy = whole / "policies" / "searched-1.json"
    assert "[semseg, depth]" in finished(command("inspect", policy))
    # The policy is all that another run needs.
    out = whole.parent / "again"
    assert main(["train", "rooms", "--encoder", "searched", "--encoder.policy", str(policy), "--out", str(out),
                 *SMALL[:SMALL.index("--candidates")]]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "stop"), [
    ("warmup/checkpoints/last.safetensors", signal.SIGKILL), ("sampling/checkpoints/last.safetensors", signal.SIGKILL),
    ("sampling/metrics.jsonl", signal.SIGINT), ("ranking.json", signal.SIGKILL),
    ("runs/searched-1--seed0/checkpoints/last.safetensors", signal.SIGINT),
    ("runs/single--seed0/evaluation/val.json", signal.SIGKILL)])
def test_stopped_anywhere_it_ends_the_same(whole: Path, tmp_path: Path, moment: str, stop: signal.Signals) -> None:
    folder = tmp_path / "s"
    process = command("rooms", "--out", folder, *SMALL, *FEW)
    deadline = time.monotonic() + 600
    while not (folder / moment).exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(stop)
    _, said = process.communicate(timeout=300)
    assert process.returncode != 0, "it ended before the signal came"
    if stop == signal.SIGINT and process.returncode == 130:
        assert "Traceback" not in said and f"polyptych search resume {folder}`" in said.splitlines()[-1]
    finished(command("resume", folder))
    one, other = (numbers(path) for path in (folder, whole))
    assert one == other
    for phase in ("warmup", "sampling"):
        mine, theirs = (read_tensors(path / phase / "checkpoints" / "last.safetensors")[0] for path in (folder, whole))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.slow
def test_the_papers_search_and_inherited_weights(tmp_path: Path) -> None:
    folder = tmp_path / "paper"
    finished(command("rooms", "--out", folder, *SMALL, "--space", "automtl", "--sampling", "9", "--network-steps", "2",
                     "--policy-steps", "1", "--finalists", "2", "--baselines", "shared", "--weights", "inherited",
                     "--dataset.frames", "100"))
    tensors, _ = read_tensors(folder / "sampling" / "checkpoints" / "last.safetensors")
    logits = [value for name, value in tensors.items() if ".logits." in name]
    assert logits and all(bool((table != 0).any()) for table in logits)  # the policy moved
    assert int(tensors["network.policy_optimizer.steps"]) == 3
    warm, _ = read_tensors(folder / "warmup" / "checkpoints" / "last.safetensors")
    assert all(not bool(value.any()) for name, value in warm.items() if ".logits." in name)
    found = numbers(folder)
    assert [network["kind"] for network in found["networks"]] == ["searched", "searched", "shared"]
    policy = json.loads((folder / "policies" / "searched-1.json").read_text())
    assert policy["space"] == "automtl" and policy["norms"] == "task" and policy["granularity"] == "op"
    log = (folder / "runs" / "searched-1--seed0" / "metrics.jsonl").read_text().splitlines()
    fresh = (folder / "runs" / "shared--seed0" / "metrics.jsonl").read_text().splitlines()
    first = [sum(json.loads(lines[0])["losses"].values()) for lines in (log, fresh)]
    assert first[0] != first[1]


@pytest.mark.slow
def test_one_process_several_seeds_and_a_latency_budget(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    finished(command("rooms", "--out", folder, *SMALL, "--budget", "latency=2.5x,params=2x", "--baselines", "none",
                     "--finalists", "2", "--seeds", "2"))
    found = numbers(folder)
    labels = {network["label"]: network for network in found["networks"]}
    assert len(labels["searched"]["skill"]["by_seed"]) == 2 and found["measured"]["timed"]
    assert all(network["relative"]["parameters"] <= 2 for network in found["networks"])
    assert found["versus"] == [] and "No random tree or policy was trained" in (folder / "search.md").read_text()
