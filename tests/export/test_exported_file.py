"""One run, exported: the file says what it is, computes what the network does, and needs nothing but its runtime."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from polyptych.errors import InputError
from polyptych.export.comparison import compare
from polyptych.export.exporting import export
from polyptych.export.metadata import KEY, from_json, to_json
from polyptych.export.runtime import ExportedModel, OnnxModel
from polyptych.prediction.model import Model, load_network, open_model
from polyptych.prediction.predictor import Predictor
from polyptych.run import read_run


def image(batch: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize("fixture", ["onnx_model", "torch_model"])
def test_the_file_is_a_model_and_says_what_the_run_says(fixture, run_folder, request):
    model = request.getfixturevalue(fixture)
    run, facts = read_run(run_folder)
    assert isinstance(model, Model)
    assert model.metadata.tasks == run.tasks and model.metadata.labels == facts.labels
    assert model.size == run.size and model.metadata.protocol == facts.protocol and model.metadata.step == 7
    assert list(model.tasks) == ["semseg", "depth"] and facts.protocol in model.caption


def test_fixed_size_agrees_for_any_batch_and_refuses_other_sizes(onnx_file, run_folder):
    model, network = OnnxModel.open(onnx_file), load_network(run_folder)[2]
    for batch in (1, 2, 5):
        with torch.inference_mode():
            expected = network(image(batch, 32, 64)).final
        for task, found in model.raw(image(batch, 32, 64)).items():
            assert found.dtype == torch.float32 and torch.allclose(found, expected[task], atol=1e-4)
    with pytest.raises(InputError, match="32 x 64"):
        model.raw(image(1, 33, 64))


def test_dynamic_size_agrees(torch_model, run_folder):
    assert isinstance(torch_model, ExportedModel)
    model, network = torch_model, load_network(run_folder)[2]
    for size in ((32, 64), (33, 65), (40, 31), (97, 130)):
        with torch.inference_mode():
            expected = network(image(2, *size)).final
        for task, found in model.raw(image(2, *size)).items():
            assert torch.allclose(found, expected[task], atol=1e-4), (task, size)


@pytest.mark.parametrize("size", [(50, 90), (20, 28)])
def test_onnxruntime_alone(onnx_file, tmp_path, size):
    """The snippet of docs/export.md, in a process that has no polyptych and no torch, predicts what predict does; of a
    photo that lies on its side, too."""
    text = (__import__("pathlib").Path(__file__).parents[2] / "docs" / "export.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    (tmp_path / "model.onnx").write_bytes(onnx_file.read_bytes())
    blocks = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(blocks).resize(size[::-1]).save(tmp_path / "photo.jpg", exif=exif)
    scene = Predictor(OnnxModel.open(onnx_file)).predict(tmp_path / "photo.jpg")
    assert scene.size == size[::-1]
    np.savez(tmp_path / "expected.npz", semseg=scene.semseg)
    check = ("import sys; assert not {'polyptych', 'torch'} & set(sys.modules); expected = np.load('expected.npz')\n"
             "assert raw['depth'].shape == (1, *expected['semseg'].shape) and raw['depth'].dtype == np.float32\n"
             "assert ids.shape == expected['semseg'].shape and (ids == expected['semseg']).mean() > 0.99 and classes")
    blocked = "import sys; sys.modules['polyptych'] = sys.modules['torch'] = None\n"
    unblocked = "import sys; [sys.modules.pop(n) for n in ('polyptych', 'torch')]\n"
    done = subprocess.run([sys.executable, "-c", blocked + code + unblocked + check], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_difference_is_refused_with_its_place(onnx_file, run_folder):
    network = load_network(run_folder)[2]
    predict = [module for name, module in network.named_modules() if name.endswith("depth.predict")]
    with torch.no_grad():
        predict[0].bias += 0.01
    with pytest.raises(InputError, match=r"task 'depth'.*channel 0, row \d+, column \d+"):
        compare(OnnxModel.open(onnx_file), network, 1e-4, (32, 64))


def test_nothing_is_left_when_the_comparison_fails(run_folder, onnx_file, tmp_path, monkeypatch):
    monkeypatch.setattr("polyptych.export.exporting.capture", lambda graph: None)  # the file is there already
    monkeypatch.setattr(OnnxModel, "write", staticmethod(lambda program, metadata, path: shutil.copy(onnx_file, path)))
    with pytest.raises(InputError, match="--tolerance"):
        export(run_folder, tolerance=1e-30, out=tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


# -- files that are not ours, or not any more ---------------------------------------------------------------------


def changed(source, target, change):
    """The ONNX file with other metadata."""
    model = onnx.load(str(source))
    entry = next(entry for entry in model.metadata_props if entry.key == KEY)
    entry.value = change(entry.value)
    onnx.save(model, str(target))
    return target


def edited(*path, value):
    def change(text):
        record = json.loads(text)
        place = record
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        return json.dumps(record)

    return change


def renamed(text):
    record = json.loads(text)
    record["model"]["tasks"]["../../depth"] = record["model"]["tasks"].pop("depth")
    return json.dumps(record)


HOSTILE = {
    "path as task": (renamed, "task called"),
    "newer": (edited("format", value=99), "update polyptych"),
    "not json": (lambda _: "{", "cannot be read"),
    "a number": (lambda _: "7", "cannot be read"),
    "code as kind": (edited("model", "tasks", "depth", "name", value="os.system('x')"), "kind"),
    "path as kind": (edited("model", "tasks", "depth", "name", value="../errors"), "kind"),
    "list as kind": (edited("model", "tasks", "depth", "name", value=["depth"]), "kind"),
    "private kind": (edited("model", "tasks", "depth", "name", value="_base"), "kind"),
    "no tasks": (edited("model", "tasks", value={}), "without tasks"),
    "other labels": (edited("model", "labels", value={}), "labels"),
    "unknown field": (edited("model", "exec", value="x"), "unknown field"),
    "wrong type": (edited("model", "fixed", value="yes"), "fixed"),
    "huge size": (edited("model", "size", value=[10**9, 10**9]), "size"),
    "color": (edited("model", "labels", "semseg", "colors", value=[[999, 0, 0]]), "color"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_metadata(case, onnx_file, tmp_path):
    change, message = HOSTILE[case]
    with pytest.raises(InputError, match=message) as caught:
        open_model(changed(onnx_file, tmp_path / "model.onnx", change))
    assert "\n" not in str(caught.value)


def test_metadata_survives(onnx_file):
    metadata = OnnxModel.open(onnx_file).metadata
    assert from_json(to_json(metadata), "x") == metadata


@pytest.mark.parametrize("fixture", ["onnx_file", "torch_file"])
@pytest.mark.parametrize("share", [0, 0.1, 0.9])
def test_truncated(fixture, share, request, tmp_path):
    data = request.getfixturevalue(fixture)
    path = tmp_path / data.name
    path.write_bytes(data.read_bytes()[:int(share * data.stat().st_size)])
    with pytest.raises(InputError) as caught:
        open_model(path)
    assert "\n" not in str(caught.value)
