"""Of many inputs, one that cannot be read costs nothing but itself."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from fakes import Model
from PIL import Image

from polyptych.cli import main
from polyptych.errors import InputError
from polyptych.prediction import pipeline
from polyptych.prediction.model import open_model
from polyptych.prediction.predictor import Inference, Predictor


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "open_model", lambda *_: Model("semseg", "depth"))
    (tmp_path / "in").mkdir()
    for name, value in (("a.png", 10), ("b.png", 20), ("d.jpg", 30)):
        Image.fromarray(np.full((6, 8, 3), value, np.uint8)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 50)
    (tmp_path / "in" / "e.mp4").write_bytes(b"no video")
    return tmp_path / "in"


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_all_others_are_predicted_and_the_rest_is_listed(folder, batch: int) -> None:
    out, said = folder.parent / "out", []
    with pytest.raises(InputError) as refusal:
        pipeline.predict(folder / "model", [folder], out, say=said.append, inference=Inference(batch=batch))
    assert f"2 of 5 that cannot be read ({folder / 'e.mp4'}, {folder / 'c.png'})" in str(refusal.value)
    assert {p.name for p in out.iterdir()} == {f"{stem}_{task}.png" for stem in "abd" for task in ("semseg", "depth")
                                               } | {"contact_sheet.png"}
    assert sum("skipped: " in str(line) for line in said) == 2
    alone = folder.parent / "alone"
    pipeline.predict(folder / "model", [folder / "d.jpg"], alone, say=said.append)
    assert (alone / "d_depth.png").read_bytes() == (out / "d_depth.png").read_bytes()


def test_on_the_command_line(folder, capsys) -> None:
    assert main(["predict", str(folder / "model"), str(folder), "--out", str(folder.parent / "out")]) == 2
    assert capsys.readouterr().err.startswith("polyptych: inputs: got 2 of 5 that cannot be read")
    assert main(["predict", str(folder / "model"), str(folder / "c.png"), "--out", str(folder.parent / "x")]) == 2
    assert "c.png: got an unreadable file" in capsys.readouterr().err
    assert main(["predict", str(folder / "model")]) == 2
    assert "got no input" in capsys.readouterr().err


def test_a_pipe_called_like_a_video_is_not_waited_for(folder) -> None:
    for name in ("e.mp4", "c.png"):
        (folder / name).unlink()
    os.mkfifo(folder / "e.mp4")
    os.mkfifo(folder / "c.gif")
    with pytest.raises(InputError, match="2 of 5 that cannot be read"):
        pipeline.predict(folder / "model", [folder], folder.parent / "out")
    os.mkfifo(folder / "model.onnx")
    with pytest.raises(InputError, match=r"model\.onnx: got a named pipe"):
        open_model(folder / "model.onnx")


def test_odd_names_in_a_folder(folder, capsys) -> None:
    for name in ("a.png", "b.png", "c.png", "e.mp4"):
        (folder / name).unlink()
    for name in (os.fsdecode(b"\xe9.jpg"), "x" * 250 + ".jpg", "x" * 249 + "y.jpg"):
        shutil.copy(folder / "d.jpg", folder / name)
    (folder / "e.mp4").symlink_to("e.mp4")
    out, shares = folder.parent / "out", folder.parent / "shares.json"
    arguments = ["predict", str(folder / "model"), str(folder), "--out", str(out), "--shares", str(shares)]
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert "1 of 5 that cannot be read" in said.err and "e.mp4" in said.err and "\\udce9.jpg: semseg" in said.out
    assert len([name for name in os.listdir(out) if name.endswith("_depth.png")]) == 4
    assert len(json.loads(shares.read_text())) == 4


def test_results_of_two_inputs_with_one_name(folder, monkeypatch) -> None:
    model = Model("semseg", "depth")
    model.tasks = {"depth": model.tasks["depth"], "x_depth": model.tasks["depth"]}
    model.weights["x_depth"] = model.weights["depth"]
    monkeypatch.setattr(pipeline, "open_model", lambda *_: model)
    for name in ("p.png", "p_x.png"):
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(folder.parent / name)
    with pytest.raises(InputError, match=r"p_x\.png: got an input whose result p_x_depth\.png would overwrite"):
        pipeline.predict(folder / "model", [folder.parent / "p.png", folder.parent / "p_x.png"], folder.parent / "out")


def test_a_window_is_no_larger_than_the_image() -> None:
    model, fixed = Model("depth"), Model("depth")
    fixed.fixed, fixed.size = True, (64, 96)
    picture = np.zeros((6, 8, 3), np.uint8)
    Predictor(model, Inference(tile=(30000, 5))).predict(picture)
    assert {shape[2:] for shape in model.seen} == {(6, 5)}
    Predictor(fixed, Inference(tile=(64, 96))).predict(picture)
    assert {shape[2:] for shape in fixed.seen} == {(64, 96)}
