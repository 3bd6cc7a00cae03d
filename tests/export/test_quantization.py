"""INT8: the file is smaller, is a model like any other, and what it costs is what an own evaluation finds."""

from __future__ import annotations

from dataclasses import replace
from shutil import copy

import onnx
import pytest
import torch

from polyptych.cli import main
from polyptych.data.loading import EvaluationBatches
from polyptych.errors import InputError
from polyptych.evaluation import measure
from polyptych.export.quantization import quantize, quantize_file
from polyptych.export.runtime import OnnxModel
from polyptych.frames import framed_predictions
from polyptych.prediction.model import open_model
from polyptych.run import read_run, write_run


@pytest.fixture(scope="session")
def static(run_folder, exported):
    """From the file that is exported already: what it would export is that once more."""
    def again(folder, *, out, **options):
        assert folder == run_folder
        assert options == {"size": None, "dynamic": False, "tolerance": 1e-4, "weights": ""}  # as that was exported
        copy(exported.path, out)
        return replace(exported, path=out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("polyptych.export.quantization.export", again)
        return quantize(run_folder, "static", calibration=2)


def weights(path):
    """Element types of the convolution weights, by the number of values of their scales."""
    model = onnx.load(str(path))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return [(tensors[made[node.input[1]].input[0]].data_type, tensors[made[node.input[1]].input[1]].dims[0])
            for node in model.graph.node if node.op_type == "Conv" and node.input[1] in made]


def test_static(static, run_folder):
    model = open_model(static.path)
    assert static.path == run_folder / "model_static_int8.onnx" and static.images == 3
    assert model.metadata.quantization == "static" and "static INT8" in model.caption
    assert static.size[1] < 0.6 * static.size[0] and static.path.stat().st_size == static.size[1]
    found = weights(static.path)
    assert len(found) > 5 and all(kind == onnx.TensorProto.INT8 for kind, _ in found)
    assert any(scales > 1 for _, scales in found)  # one for every output channel
    assert not list(run_folder.glob(".export-*"))


def test_the_table_says_what_an_evaluation_of_the_file_says(static, run_folder):
    run, model = read_run(run_folder)[0], OnnxModel.open(static.path)
    batches = EvaluationBatches(run.build_dataset("val"), model.tasks, run.size, 1, rank=0, world=1, workers=0,
                                 on_fault=run.loading.on_fault)
    predict = lambda batch: framed_predictions(batch, model.raw, model.tasks)  # noqa: E731
    metrics = measure({"int8": predict}, batches, model.tasks, torch.device("cpu"))["int8"]
    assert [score.task for score in static.scores] == ["semseg", "depth"]
    for score in static.scores:
        assert score.after == pytest.approx(metrics[score.task].compute()[score.metric.split()[0]], abs=1e-9)
    assert any(score.before != score.after for score in static.scores)  # eight bits are not thirty-two


def int8(source, target, method, *images):
    target.parent.mkdir()
    plain = target.with_name("float32.onnx")
    plain.write_bytes(source.read_bytes())
    quantize_file(plain, target, method, OnnxModel.open(plain).metadata, iter(images), len(images))
    return onnx.load(str(target))


def scales(model):
    return [onnx.numpy_helper.to_array(t).tolist() for t in model.graph.initializer if t.name.endswith("_scale")]


def test_static_learns_its_ranges_from_the_images(onnx_file, tmp_path):
    dark, bright = torch.full((1, 3, 32, 64), 20, dtype=torch.uint8), torch.full((1, 3, 32, 64), 250, dtype=torch.uint8)
    first, again, other = (scales(int8(onnx_file, tmp_path / name / "int8.onnx", "static", image))
                           for name, image in (("first", dark), ("again", dark), ("other", bright)))
    assert first == again and first != other


def test_dynamic_finds_its_ranges_in_the_graph(onnx_file, tmp_path):
    model = int8(onnx_file, tmp_path / "dynamic" / "int8.onnx", "dynamic")
    assert {"ConvInteger", "DynamicQuantizeLinear"} <= {node.op_type for node in model.graph.node}
    assert (tmp_path / "dynamic" / "int8.onnx").stat().st_size < 0.6 * onnx_file.stat().st_size


@pytest.mark.slow
def test_dynamic_from_the_command(run_folder, tmp_path, capsys):
    out = tmp_path / "small.onnx"
    assert main(["export", str(run_folder), "--quantize", "dynamic", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "dynamic INT8" in said and "semseg" in said and "MiB" in said and str(out) in said.replace("\n", "")
    assert open_model(out).metadata.quantization == "dynamic"
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]


def test_without_the_dataset(run_folder, tmp_path):
    from polyptych.datasets.nyuv2 import NYUv2

    run, facts = read_run(run_folder)
    folder = tmp_path / "run"
    folder.mkdir()
    write_run(folder / "run.json", replace(run, dataset=NYUv2.Config(root=str(tmp_path / "nowhere"))), facts)
    with pytest.raises(InputError, match="without --quantize") as caught:
        quantize(folder, "static")
    assert "nyuv2" in str(caught.value) and "\n" not in str(caught.value)
