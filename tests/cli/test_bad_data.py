"""Training on data that is missing, half copied or damaged: one line, exit code 2, nothing lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nyuv2_files import damage, write_folder
from polyptych.cli import main
from polyptych.datasets.nyuv2 import NYUv2

pytestmark = pytest.mark.usefixtures("without_plots")

SMALL = ["--steps", "3", "--batch-size", "2", "--size", "32", "48", "--backbone.model", "test_resnet",
         "--dataset.validation", "0.2", "--monitoring.examples", "1", "--monitoring.trivial-samples", "4",
         "--loading.workers", "0"]


def train(root: Path, out: Path, *more: str) -> int:
    return main(["train", "nyuv2", "--dataset.root", str(root), "--out", str(out), *SMALL, *more])


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """Whole data in ``data`` and what is trained on them in ``run``."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(write_folder(folder / "data", "npy"), folder / "run") == 0
    return folder


def test_whole_data_trains(trained: Path) -> None:
    result = json.loads((trained / "run" / "evaluation" / "test.json").read_text())
    assert result["protocol"].startswith("nyuv2-40-48x64-folder") and result["skipped"] == []


def test_a_half_copied_folder_stops_before_anything_is_made(capsys, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", "npy")
    (root / "depth" / "0007.npy").unlink()
    assert train(root, tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "depth: got 3 of 4 listed files" in said and "0007.npy" in said
    assert not (tmp_path / "run").exists()


DAMAGE = [("images/0004.jpg", "truncate", "images/0004.jpg: got an unreadable file"),
          ("segmentation/0004.png", "class", "segmentation/0004.png: got class id 57"),
          ("depth/0004.npy", "small", "depth/0004.npy: got a label of 46x64 pixels")]


@pytest.mark.parametrize(("workers", "file", "how", "message"), [
    *(("0", *damage) for damage in DAMAGE), ("2", *DAMAGE[0]),
    *(pytest.param("2", *damage, marks=pytest.mark.grid) for damage in DAMAGE[1:])])
def test_a_damaged_file_stops_with_its_name(capsys, tmp_path: Path, workers: str, file: str, how: str,
                                            message: str) -> None:
    root = write_folder(tmp_path / "data", "npy")
    damage(root / file, how)
    assert train(root, tmp_path / "run", "--loading.workers", workers, "--dataset.validation", "0") == 2
    said = capsys.readouterr().err.splitlines()
    assert message in said[-1] and said[-1].startswith("polyptych: ") and "Traceback" not in "".join(said)


def test_damaged_files_are_skipped_and_counted_when_asked(capsys, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data", "npy")
    train_split = NYUv2.Config(root=root, validation=0.2).build(split="train", tasks=("semseg",))
    broken = train_split.read(0).info.id
    for name in (broken, "0001"):
        damage(root / "images" / f"{name}.jpg", "truncate")
    assert train(root, tmp_path / "run", "--loading.on-fault", "skip", "--steps", "6") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "skipped 1 training samples that could not be used" in said and f"{broken}.jpg" in said
    result = json.loads((tmp_path / "run" / "evaluation" / "test.json").read_text())
    assert len(result["skipped"]) == 1 and "0001.jpg" in result["skipped"][0]
    assert "1 of them skipped as unreadable" in (tmp_path / "run" / "report.md").read_text()


def test_the_cache_gives_the_same_start(trained: Path, tmp_path: Path) -> None:
    assert train(trained / "data", tmp_path / "cached", "--loading.cache", str(tmp_path / "c")) == 0
    losses = [[json.loads(line)["losses"] for line in (folder / "metrics.jsonl").read_text().splitlines()
               if '"train"' in line] for folder in (trained / "run", tmp_path / "cached")]
    for task, value in losses[0][0].items():
        assert losses[1][0][task] == pytest.approx(value, rel=2e-2)  # float16 labels
