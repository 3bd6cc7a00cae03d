"""What files, folders and cameras name, and what opens as a model."""

from __future__ import annotations

import os
import sys
import types
import unicodedata

import numpy as np
import pytest
from fakes import Model
from PIL import Image

import polyptych
from polyptych.data.pictures import read_color
from polyptych.errors import InputError
from polyptych.prediction.inputs import as_pixels, find_sources
from polyptych.prediction.model import open_model


def picture(path, size=(6, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(path)


def test_folders(tmp_path) -> None:
    for name in ("b.png", "a.jpg", "deep/er/c.png", "notes.txt"):
        picture(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("x")
    (tmp_path / "clip.MP4").write_bytes(b"")
    (tmp_path / "looks_like.png").mkdir()
    flat = find_sources([tmp_path])
    assert [s.path.name for s in flat] == ["a.jpg", "b.png", "clip.MP4"]
    assert [s.moves for s in flat] == [False, False, True]
    assert [s.path.name for s in find_sources([tmp_path], recursive=True)] == ["a.jpg", "b.png", "clip.MP4", "c.png"]


def test_nothing_is_overwritten(tmp_path) -> None:
    for name in ("x/a.png", "y/a.png", "y/b.png"):
        picture(tmp_path / name)
    stems = [s.stem for s in find_sources([tmp_path / "x", tmp_path / "y"])]
    assert stems == ["0000_a", "0001_a", "b"]


def test_cameras() -> None:
    (camera,) = find_sources(["camera:0"])
    assert camera.moves and camera.device == "0" and camera.stem == "camera_0"
    assert find_sources(["camera:/dev/video2"])[0].stem == "camera__dev_video2"
    with pytest.raises(InputError, match=r"input .camera:.: got a camera without a number; needs for instance"):
        find_sources(["camera:"])


def test_what_is_missing(tmp_path) -> None:
    (tmp_path / "deep").mkdir()
    with pytest.raises(InputError, match=r"a folder without images.*--recursive"):
        find_sources([tmp_path])
    with pytest.raises(InputError, match="no such file or folder"):
        find_sources([tmp_path / "gone.jpg"])


def test_an_image_is_turned_upright(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert as_pixels(tmp_path / "a.jpg").array.shape == (8, 6, 3)


def test_gray_of_16_bits_is_scaled(tmp_path) -> None:
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (4, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    read = as_pixels(tmp_path / "a.png").array
    assert np.abs(read.astype(float) - ramp[..., None] / 257).max() <= 0.5
    assert np.array_equal(as_pixels(Image.fromarray(ramp)).array, read)
    assert np.array_equal(read_color(tmp_path / "a.png").permute(1, 2, 0).numpy(), read)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_without_a_scale_are_refused(tmp_path, kind) -> None:
    Image.fromarray(np.full((4, 5), 300, kind)).save(tmp_path / "a.tif")
    for read in (as_pixels, read_color):
        with pytest.raises(InputError, match=r"a\.tif: got a picture of (32-bit integers|floating-point numbers)"):
            read(tmp_path / "a.tif")


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 50,
                                     b"GIF89a" + b"\xff" * 20])
def test_what_is_no_image(tmp_path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.png: got an unreadable file"):
        as_pixels(tmp_path / "a.png")


def test_half_an_image(tmp_path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:4000])
    with pytest.raises(InputError, match="an unreadable file"):
        as_pixels(tmp_path / "a.png")


@pytest.mark.parametrize(("name", "got"), [("gone", "no such file or folder"), ("gone.onnx", "no such file or folder"),
                                           ("a.txt", r"a file that ends in '\.txt'"), ("a", "a file that ends in ''")])
def test_what_is_no_model(tmp_path, name: str, got: str) -> None:
    if not name.startswith("gone"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=f"{got}; needs a run folder, hf://OWNER/NAME, or an exported model"):
        polyptych.load(tmp_path / name)


def test_a_folder_that_is_no_run(tmp_path) -> None:
    with pytest.raises(InputError, match=r"run\.json: got no such file"):
        polyptych.load(tmp_path)


def test_exported_models_open_by_their_suffix(tmp_path, monkeypatch) -> None:
    class Opens(Model):
        @classmethod
        def open(cls, path):
            model = cls("depth")
            model.caption = path.name
            return model

    runtime = types.ModuleType("polyptych.export.runtime")
    runtime.OnnxModel = runtime.ExportedModel = Opens
    monkeypatch.setitem(sys.modules, "polyptych.export", types.ModuleType("polyptych.export"))
    monkeypatch.setitem(sys.modules, "polyptych.export.runtime", runtime)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    for name in ("a.onnx", "b.pt2"):
        (tmp_path / name).write_bytes(b"")
        assert open_model(tmp_path / name).caption == name
        assert polyptych.load(tmp_path / name, flip=True).predict(np.zeros((4, 4, 3), np.uint8)).depth.shape == (4, 4)
    with pytest.raises(InputError, match="--weights: got best; needs a run folder"):
        open_model(tmp_path / "a.onnx", weights="best")


def test_onnx_without_its_runtime(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(InputError, match=r"onnxruntime, which is not installed|pip install"):
        open_model(tmp_path / "a.onnx")


def test_a_device_that_is_not_there(tmp_path) -> None:
    with pytest.raises(InputError, match="--device: got 'abacus'; needs one of auto, cpu"):
        open_model(tmp_path, device="abacus")


def test_results_never_meet(tmp_path) -> None:
    """Numbered names, capitals and both ways to write an accent are what inputs may be called, too."""
    for name in ("a.png", "a.jpg", "0001_a.png", "B.png", "b.jpg", "\u00e9.png", "e\u0301.jpg"):
        picture(tmp_path / name)
    stems = [s.stem for s in find_sources([tmp_path])]
    assert len(stems) == 7 and len({unicodedata.normalize("NFC", s).casefold() for s in stems}) == 7
    assert "0001_a" in stems


def test_what_systems_leave_beside_images_is_none(tmp_path) -> None:
    picture(tmp_path / "x.jpg")
    (tmp_path / "._x.jpg").write_bytes(b"\0\5\26\7")
    assert [s.path.name for s in find_sources([tmp_path])] == ["x.jpg"]
    assert [s.path.name for s in find_sources([tmp_path], recursive=True)] == ["x.jpg"]


def test_nothing_is_named() -> None:
    with pytest.raises(InputError, match="got no input; needs images, videos, folders"):
        find_sources([])


def test_a_pipe_is_not_waited_for(tmp_path) -> None:
    os.mkfifo(tmp_path / "9.png")
    with pytest.raises(InputError, match=r"9\.png: got neither a file nor a folder"):
        find_sources([tmp_path / "9.png"])
    with pytest.raises(InputError, match=r"9\.png: got a named pipe"):
        as_pixels(tmp_path / "9.png")


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_an_animation_the_first_frame(tmp_path, suffix: str) -> None:
    first, second = (Image.fromarray(np.full((6, 8, 3), value, np.uint8)) for value in (200, 0))
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second], lossless=True)
    found = as_pixels(tmp_path / f"a.{suffix}")
    assert found.remark.startswith("only the first of 2 frames") and abs(int(found.array[0, 0, 0]) - 200) < 8
    first.save(tmp_path / f"still.{suffix}")
    assert as_pixels(tmp_path / f"still.{suffix}").remark == ""


def test_more_pixels_than_pillow_likes(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    picture(tmp_path / "map.png", (6, 8))
    with pytest.raises(Image.DecompressionBombError), Image.open(tmp_path / "map.png"):
        pass
    assert as_pixels(tmp_path / "map.png").array.shape == (6, 8, 3)
    assert Image.MAX_IMAGE_PIXELS == 20
