"""polyptych export: what a user can get wrong is one line and exit code 2."""

from __future__ import annotations

import pytest

from polyptych.cli import main


@pytest.mark.parametrize(("arguments", "message"), [
    (["missing"], "missing"),
    (["missing", "--format", "tflite"], "onnx"),
    (["missing", "--size", "0", "5"], "--size"),
    (["missing", "--size", "64", "64", "--dynamic"], "--dynamic"),
    (["missing", "--out", "model.txt"], ".onnx"),
    (["missing", "--format", "torch", "--quantize", "static"], "--format onnx"),
    (["missing", "--tolerance", "nan"], "--tolerance"),
    (["missing", "--quantize", "static", "--calibration", "0"], "--calibration"),
    (["missing", "--quantise", "static"], "--quantize"),
])
def test_bad_input(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2"])
def test_predict_refuses_what_is_no_model(name, capsys, tmp_path):
    (tmp_path / name).write_bytes(b"\x00 not a model")
    assert main(["predict", str(tmp_path / name), "photo.png"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
