"""A run folder as a model: the same numbers as its network, any size of image, the command line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import polyptych
from polyptych.cli import main
from polyptych.data.geometry import Geometry
from polyptych.ops.resize import resize
from polyptych.prediction.model import Model, RunModel, load_network, open_model


def image(height: int = 70, width: int = 90) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_model(run_folder) -> None:
    model = open_model(run_folder, device="cpu")
    assert isinstance(model, Model) and isinstance(model, RunModel)
    assert model.size == (48, 64) and not model.fixed and model.caption == "run (rooms-1-48x64)"
    raw = model.raw(torch.zeros(2, 3, 40, 50, dtype=torch.uint8))
    assert list(raw) == list(model.tasks)
    assert all(x.shape == (2, model.tasks[name].channels, 40, 50) and x.dtype == torch.float32
               for name, x in raw.items())
    assert open_model(run_folder / "run.json", device="cpu").caption == model.caption


@pytest.mark.parametrize("size", [(70, 90), (48, 64), (31, 33)])
def test_a_scene_is_what_the_network_says(run_folder, size) -> None:
    """Resized as in evaluation, raw predictions brought back, then decoded."""
    _, tasks, network, _ = load_network(run_folder)
    picture = image(*size)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)
    with torch.inference_mode():
        raw = network(Geometry.resize(size, (48, 64)).image(tensor)[None]).final
    scene = polyptych.load(run_folder, device="cpu").predict(picture)
    for name, task in tasks.items():
        assert torch.equal(scene.decoded[name], task.decode(resize(raw[name], size))[0]), name


@pytest.mark.parametrize("options", [{"native": True}, {"tile": (48, 64), "batch": 2}, {"flip": True},
                                     {"scales": (0.5, 1.0)}])
@pytest.mark.parametrize("size", [(1, 1), (5, 200), (65, 129)])
def test_any_size(run_folder, size, options) -> None:
    scene = polyptych.load(run_folder, device="cpu", **options).predict(image(*size))
    assert scene.semseg.shape == scene.depth.shape == size
    assert all(np.isfinite(scene[task]).all() for task in scene.tasks)


def test_the_command_with_everything(run_folder, tmp_path, capsys) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    Image.fromarray(image()).save(tmp_path / "in" / "deep" / "a.png")
    out = tmp_path / "out"
    assert main(["predict", str(run_folder), str(tmp_path / "in"), "--recursive", "--out", str(out), "--arrays",
                 "--maps", "--overlay", "--opacity", "0.5", "--points", "--intrinsics", "80", "80", "45", "35",
                 "--flip", "--scales", "0.75", "1", "--tile", "48", "64", "--overlap", "0.5", "--batch", "3",
                 "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    assert "1 image in" in said and "images/s" in said and said.strip().endswith("contact_sheet.png")
    names = {path.name for path in out.iterdir()}
    assert {"a_depth.png", "a_depth.npy", "a_depth_16bit.png", "a_depth_overlay.png", "a.ply", "a_normals.npy",
            "contact_sheet.png"} <= names
    assert np.load(out / "a_normals.npy").shape == (70, 90, 3)


@pytest.mark.parametrize(("arguments", "part"), [
    (["--tile", "0", "5"], "--tile: got 0 5"), (["--scales", "0"], "--scales"), (["--overlap", "2"], "--overlap"),
    (["--batch", "0"], "--batch"), (["--frames", "-1"], "--frames"), (["--field-of-view", "60"], "--points"),
    (["--points", "--field-of-view", "190"], "--field-of-view"), (["--device", "abacus"], "--device"),
    (["--size", "8", "8", "--native"], "--native"), (["--opacity", "7"], "--opacity"),
    (["--weights", "best"], "best.safetensors: got no such file")])
def test_bad_options_are_one_line(run_folder, tmp_path, capsys, arguments, part) -> None:
    Image.fromarray(image()).save(tmp_path / "a.png")
    assert main(["predict", str(run_folder), str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), *arguments]) == 2
    said = capsys.readouterr().err
    assert part in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists(), "refused before anything is written"


@pytest.mark.parametrize("name", ["gone.onnx", "gone", "notes.txt"])
def test_bad_models_are_one_line(tmp_path, capsys, name) -> None:
    Image.fromarray(image()).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("x")
    assert main(["predict", str(tmp_path / name), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert name in said and said.count("\n") == 1


def test_a_corrupt_video_is_one_line(run_folder, tmp_path, capsys) -> None:
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_bytes(b"\0" * 999)
    assert main(["predict", str(run_folder), str(tmp_path / "a.mp4"), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "a.mp4: got " in said and "needs a video" in said and said.count("\n") == 1
