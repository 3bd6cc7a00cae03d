"""The command line: what it says, and that bad input is one line and exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from polyptych.cli import commands, main
from polyptych.cli.list import KINDS, descriptions

pytestmark = pytest.mark.usefixtures("without_plots")

SMALL = ["--steps", "2", "--batch-size", "2", "--size", "48", "64", "--dataset.size", "48", "64",
         "--dataset.val-frames", "2", "--dataset.test-frames", "2", "--backbone.model", "test_resnet",
         "--monitoring.examples", "1", "--monitoring.trivial-samples", "4", "--loading.workers", "0"]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must be refused; returns its one line."""
    assert main(list(arguments)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("polyptych: "), said
    return said.strip()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "rooms", "--out", str(folder), "--tasks", "semseg,depth,keypoints", *SMALL]) == 0
    return folder


def test_help_names_every_command(capsys) -> None:
    assert main([]) == main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name}" in said for name in commands())


@pytest.mark.parametrize("command", list(commands()))
def test_every_command_explains_itself(capsys, command: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, *(["rooms"] if command == "train" else []), "--help"])
    assert not stop.value.code
    assert f"polyptych {command}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_list_shows_every_component_with_a_summary(capsys, kind: str) -> None:
    assert main(["list", kind]) == 0
    said = " ".join(capsys.readouterr().out.split())
    entries = descriptions(kind)
    assert entries
    for entry in entries:
        assert entry.name in said
        assert len(entry.summary) > 10, f"{kind} {entry.name} says nothing of itself"


def test_listing_imports_no_component() -> None:
    program = ("import sys; from polyptych.cli import main; main(['list']); "
               "assert 'torch' not in sys.modules, 'torch'; assert 'polyptych.decoders.heads' not in sys.modules")
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize(("arguments", "parts"), [
    (["trian"], ["command 'trian'", "nearest: train"]),
    (["train"], ["no recipe", "rooms", "nyuv2"]),
    (["train", "romos"], ["recipe 'romos'", "nearest: rooms"]),
    (["train", "rooms", "--encoder", "shard"], ["encoder 'shard'", "nearest: shared"]),
    (["train", "rooms", "--decoder"], ["--decoder: got no value"]),
    (["train", "rooms", "--tasks", "semseg,dept"], ["task 'dept'", "nearest: depth"]),
    (["train", "rooms", "--lerning-rate", "1"],
     ["--lerning-rate: got an unknown option", "nearest: --optimizer.learning-rate"]),
    (["train", "rooms", "--optimizer.lerning-rate", "1"],
     ["--optimizer.lerning-rate: got", "nearest: --optimizer.learning-rate"]),
    (["train", "rooms", "--steps", "many"], ["--steps: got", "'many'"]),
    (["train", "rooms", "--steps", "0"], ["--steps: got 0; needs 1 or more"]),
    (["train", "rooms", "--ema", "1.5"], ["--ema: got 1.5"]),
    (["train", "rooms", "--schedule.kind", "cosin"], ["--schedule.kind: got 'cosin'; needs one of 'cosine'"]),
    (["train", "nyuv2", "--dataset.root", "/nowhere"], ["/nowhere"]),
    (["train", "rooms", "--from", "runs/x"], ["both a recipe and --from"]),
    (["resume", "/nowhere"], ["/nowhere/run.json", "no such file"]),
    (["evaluate", "/nowhere"], ["/nowhere/run.json"]),
    (["evaluate", "/nowhere", "--split", "tset"], ["--split", "tset"]),
    (["predict", "/nowhere", "x.jpg"], ["x.jpg"]),
    (["report", "/nowhere"], ["/nowhere"]),
    (["list", "decoder"], ["catalog 'decoder'", "nearest: decoders"]),
])
def test_refusals(capsys, arguments: list[str], parts: list[str]) -> None:
    said = refused(capsys, *arguments)
    for part in parts:
        assert part in said


def test_from_repeats_a_run_with_changes(trained: Path, tmp_path: Path) -> None:
    changes = ["--encoder", "single", "--seed", "3"]
    assert main(["train", "--from", str(trained), "--out", str(tmp_path / "again"), *changes]) == 0
    record = json.loads((tmp_path / "again" / "run.json").read_text())["run"]
    assert record["encoder"]["name"] == "single" and record["seed"] == 3
    assert list(record["tasks"]) == ["semseg", "depth", "keypoints"]
    assert record["size"] == [48, 64]


def test_an_existing_folder_is_refused(capsys, trained: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in trained.rglob("*")}
    said = refused(capsys, "train", "rooms", "--out", str(trained), *SMALL)
    assert "a folder that exists" in said and f"polyptych resume {trained}" in said
    assert before == {p: p.stat().st_mtime_ns for p in trained.rglob("*")}


def test_a_typo_in_run_json_is_named(capsys, trained: Path, tmp_path: Path) -> None:
    record = json.loads((trained / "run.json").read_text())
    record["run"]["batchsize"] = 8
    (tmp_path / "run.json").write_text(json.dumps(record))
    said = refused(capsys, "evaluate", str(tmp_path))
    assert "run.batchsize: got an unknown field" in said and "nearest: batch_size" in said


def test_evaluate_prints_a_table_and_writes_json(capsys, trained: Path) -> None:
    assert main(["evaluate", str(trained), "--split", "val"]) == 0
    said = capsys.readouterr().out
    assert "mIoU" in said and "RMSE" in said
    assert json.loads((trained / "evaluation" / "val.json").read_text())["split"] == "val"


def test_a_truncated_checkpoint_is_refused(capsys, trained: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(trained, tmp_path / "copy")
    path = folder / "checkpoints" / "last.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    for command in (["evaluate", str(folder)], ["resume", str(folder)]):
        assert "last.safetensors: got a file that is not a whole checkpoint" in refused(capsys, *command)


def test_predict_writes_pictures_and_arrays(trained: Path, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    (tmp_path / "in").mkdir()
    for name, size in (("a.jpg", (97, 130)), ("b.png", (64, 40))):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(tmp_path / "in" / name)
    assert main(["predict", str(trained), str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--arrays"]) == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        f"{stem}_{task}.{kind}" for stem in "ab" for task in ("semseg", "depth", "keypoints") for kind in ("png", "npy")
    } | {"contact_sheet.png"}
    depth = np.load(tmp_path / "out" / "a_depth.npy", allow_pickle=False)
    assert depth.shape == (97, 130) and depth.dtype == np.float32 and (depth > 0).all()
    assert Image.open(tmp_path / "out" / "b_semseg.png").size == (40, 64)


def test_predict_refuses_what_is_no_image(capsys, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("not an image")
    assert "notes.jpg: got an unreadable file (no picture of a known format)" in refused(
        capsys, "predict", str(trained), str(tmp_path / "notes.jpg"), "--out", str(tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    assert "a folder without images" in refused(capsys, "predict", str(trained), str(tmp_path / "empty"))


@pytest.mark.parametrize("arguments", [
    ["list", "--help"], pytest.param(["train", "rooms", "--help"], marks=pytest.mark.grid)],
    ids=["list", "train"])
def test_a_closed_pipe_is_no_error(arguments: list[str]) -> None:
    """Each writes twice: help that fails is begun again with the real libraries, of which ``list`` needs none."""
    command = [sys.executable, "-u", "-m", "polyptych", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()  # before Python has started
        assert b"Traceback" not in process.stderr.read()
