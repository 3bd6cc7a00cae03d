"""What is known of the validation and test splits before the first step."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyptych.cli import main

pytestmark = pytest.mark.usefixtures("without_plots")


def data(root: Path, splits: str, labelled: range = range(8)) -> Path:
    for kind in ("images", "seg"):
        (root / kind).mkdir(parents=True)
    for index in range(8):
        picture = np.random.default_rng(index).integers(0, 2, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(picture * 200).save(root / "images" / f"{index:04}.png")
        if index in labelled:
            Image.fromarray(picture[..., 0]).save(root / "seg" / f"{index:04}.png")
    (root / "dataset.toml").write_text(f'image = "images/{{id}}.png"\n[splits]\n{splits}\n[tasks.semseg]\n'
                                       'files = "seg/{id}.png"\nclasses = ["a", "b"]\n')
    for name, ids in (("train", range(4)), ("val", range(4, 6)), ("test", range(6, 8))):
        (root / f"{name}.txt").write_text("".join(f"{index:04}\n" for index in ids))
    return root


def train(root: Path, out: Path, *more: str) -> int:
    return main(["train", "rooms", "--dataset", "folder", "--tasks", "semseg", "--dataset.root", str(root), "--out",
                 str(out), "--backbone.model", "test_resnet", "--size", "32", "32", "--batch-size", "2", "--steps", "1",
                 "--monitoring.examples", "1", "--execution.device", "cpu", *more])


LISTS = 'train = "train.txt"\nval = "val.txt"\ntest = "test.txt"'


def test_without_validation(tmp_path: Path, capsys) -> None:
    root = data(tmp_path / "data", "val = 0.0\ntest = 0.25")
    assert train(root, tmp_path / "best", "--select", "best") == 2
    assert "--select: got best, but the data has no validation split" in capsys.readouterr().err
    assert not (tmp_path / "best").exists()
    assert train(root, tmp_path / "run") == 0
    assert "the run trains without validation" in " ".join(capsys.readouterr().err.split())
    assert [p.name for p in (tmp_path / "run" / "evaluation").glob("*.json")] == ["test.json"]
    assert main(["resume", str(tmp_path / "run")]) == 0


def test_without_a_test_split(tmp_path: Path, capsys) -> None:
    root = data(tmp_path / "data", 'train = "train.txt"\nval = "val.txt"\ntest = 0.0')
    assert train(root, tmp_path / "run") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "the run is not tested" in said and "the data has no test split: nothing was tested" in said
    assert (tmp_path / "run" / "report.html").exists() and (tmp_path / "run" / "panels" / "000.png").exists()
    assert main(["evaluate", str(tmp_path / "run")]) == 2
    assert main(["evaluate", str(tmp_path / "run"), "--split", "val"]) == 0


def test_damage_in_the_test_split_is_found_before_the_first_step(tmp_path: Path, capsys) -> None:
    root = data(tmp_path / "data", LISTS)
    (root / "seg" / "0007.png").write_bytes((root / "seg" / "0007.png").read_bytes()[:50])
    assert train(root, tmp_path / "run") == 2
    assert "0007.png: got" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_test_split_without_labels_is_no_success(tmp_path: Path, capsys) -> None:
    root = data(tmp_path / "data", LISTS, range(6))
    assert train(root, tmp_path / "run") == 2
    assert "2 images without a label for any task" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert train(root, tmp_path / "run", "--loading.check", "0") == 2
    assert "got no result for semseg from 2 images" in capsys.readouterr().err
    assert (tmp_path / "run" / "report.html").exists()
    assert main(["evaluate", str(tmp_path / "run")]) == 2


@pytest.mark.parametrize("half", ['{"event": "train", "st', '{"event": "train", "losses": {"a": 1}', "[3]",
                                  '{"a": 1}', "\0"])
def test_a_log_with_half_a_line(tmp_path: Path, half: str) -> None:
    from polyptych.logbook import Logbook

    log = Logbook(tmp_path, 0, tensorboard=False)
    for step in range(1, 5):
        log.write("train", step, losses={})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(half)
    Logbook(tmp_path, 3, tensorboard=False)
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
