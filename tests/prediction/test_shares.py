"""`predict --shares`: how much of each image each class covers."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from fakes import Model
from PIL import Image

from polyptych.errors import InputError
from polyptych.prediction import pipeline


def run(monkeypatch, tmp_path, name: str, *tasks: str):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr(pipeline, "open_model", lambda *_: Model(*tasks))
    return pipeline.predict(tmp_path / "model", [tmp_path / "a.png"], tmp_path / "out", arrays=True,
                            shares=tmp_path / name, say=lambda _: None)


def test_shares_are_those_of_the_pixels(tmp_path, monkeypatch) -> None:
    assert tmp_path / "t.json" in run(monkeypatch, tmp_path, "t.json", "depth", "semseg")
    found = json.loads((tmp_path / "t.json").read_text())[str(tmp_path / "a.png")]
    ids = np.load(tmp_path / "out/a_semseg.npy")
    assert list(found) == ["semseg"] and abs(sum(found["semseg"].values()) - 1) < 1e-9
    assert list(found["semseg"].values()) == [float((ids == number).mean()) for number in range(len(found["semseg"]))]
    run(monkeypatch, tmp_path, "t.csv", "semseg")
    ids = np.load(tmp_path / "out/a_semseg.npy")
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [row["class"] for row in rows] == list(found["semseg"])
    assert [float(row["share"]) for row in rows] == [round(float((ids == number).mean()), 6)
                                                     for number in range(len(rows))]


@pytest.mark.parametrize(("name", "tasks", "message"), [
    ("t.txt", ("semseg",), r"--shares: got .*t\.txt; needs a file ending in \.csv or \.json"),
    ("t.csv", ("depth",), "--shares: got a model of depth; needs a task that gives every pixel a class")])
def test_what_cannot_be_written_is_refused_first(tmp_path, monkeypatch, name: str, tasks, message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(monkeypatch, tmp_path, name, *tasks)
    assert not (tmp_path / "out").exists()
