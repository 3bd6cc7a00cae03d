"""INT8 quantization: weights (and, if static, activation ranges) in eight bits, with the loss of quality measured on
the validation split."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from polyptych.data.loading import EvaluationBatches
from polyptych.errors import InputError
from polyptych.evaluation import BatchPredictor, measure
from polyptych.export.exporting import check, export
from polyptych.export.graph import INPUT, Size, quiet
from polyptych.export.metadata import KEY, ExportMetadata, to_json
from polyptych.export.runtime import FileModel, OnnxModel
from polyptych.frames import framed_predictions
from polyptych.metrics._accumulation import number_name, shown_name
from polyptych.record import put_in_place
from polyptych.run import Run, read_run
from polyptych.tasks._base import Task

Method = Literal["dynamic", "static"]


@dataclass(frozen=True)
class Score:
    """Headline metric of one task."""

    task: str
    metric: str
    higher_is_better: bool
    before: float
    after: float


@dataclass(frozen=True)
class Quantized:
    """The quantized file, and what it costs; sizes in bytes, times in seconds per image."""

    path: Path
    method: Method
    images: int
    scores: tuple[Score, ...]
    size: tuple[int, int]
    seconds: tuple[float, float]

    def table(self) -> Table:
        table = Table(title=f"{self.method} INT8, validation split ({self.images} images)")
        for title in ("", "metric", "float32", "INT8", "change"):
            table.add_column(title, justify="left" if title in ("", "metric") else "right")
        for score in self.scores:
            metric = f"{shown_name(score.metric)} {'↑' if score.higher_is_better else '↓'}"
            table.add_row(score.task, metric, f"{score.before:.4g}", f"{score.after:.4g}",
                          f"{score.after - score.before:+.3g}")
        mebibytes, times = [size / 2**20 for size in self.size], [1000 * seconds for seconds in self.seconds]
        table.add_row("file", "MiB", *(f"{x:.2f}" for x in mebibytes), f"x {mebibytes[1] / mebibytes[0]:.2f}")
        table.add_row("time", "ms per image", *(f"{x:.1f}" for x in times), f"x {times[1] / times[0]:.2f}")
        return table


def check_quantized(format: str, size: Size | None, dynamic: bool, out: Path | None, tolerance: float,
                    calibration: int) -> None:
    """Check the options of a quantized export before any file is read."""
    if format != "onnx":
        raise InputError("--quantize", f"--format {format}", "--format onnx", "leave --format out")
    if calibration < 1:
        raise InputError("--calibration", str(calibration), "1 or more", "raise it")
    check(format, size, dynamic, out, tolerance)


def quantize(folder: Path, method: Method, *, format: str = "onnx", size: Size | None = None, dynamic: bool = False,
             out: Path | None = None, tolerance: float = 1e-4, weights: str = "", calibration: int = 32) -> Quantized:
    """Export in float32, compare, quantize, and measure both on the validation split.

    ``dynamic`` measures the ranges of activations for every image; ``static`` takes them from the first ``calibration``
    validation images (min and max), and uses one scale per output channel of a convolution.

    Raises:
        InputError: as :func:`polyptych.export.exporting.export`; another format than ONNX; the data is not there.
    """
    check_quantized(format, size, dynamic, out, tolerance, calibration)
    run = read_run(folder)[0]
    try:
        length = len(run.build_dataset("val"))
    except (InputError, OSError) as error:
        raise InputError("--quantize", f"no validation images ({error})",
                         f"the run's dataset '{run.dataset.name}', to measure what INT8 costs",
                         "make it available, or export without --quantize") from None
    target = out or folder / f"model_{method}_int8.onnx"
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as place:
        plain, small = Path(place) / "float32.onnx", Path(place) / "int8.onnx"
        exported = export(folder, size=size, dynamic=dynamic, out=plain, tolerance=tolerance, weights=weights)
        metadata = replace(exported.metadata, quantization=method)
        working = replace(run, size=metadata.size)
        images = (batch.image for batch in _batches(working, metadata.build_tasks()))
        quantize_file(plain, small, method, metadata, images, calibration)
        models = [OnnxModel.open(plain), OnnxModel.open(small)]
        results, seconds = zip(*(_measure(model, working) for model in models), strict=True)
        sizes = (plain.stat().st_size, small.stat().st_size)
        put_in_place(small, target)
    scores = tuple(Score(name, number_name(task.headline, results[0][name][1]), task.higher_is_better[task.headline],
                         results[0][name][0], results[1][name][0]) for name, task in models[0].tasks.items())
    return Quantized(target, method, length, scores, sizes, (seconds[0], seconds[1]))


def quantize_file(source: Path, target: Path, method: Method, metadata: ExportMetadata, images: Iterator[Tensor],
              calibration: int) -> None:
    """Quantize an ONNX file to INT8; ``images`` are batches, of which static quantization uses ``calibration``
    images."""
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = islice((image[None] for batch in images for image in batch), calibration)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {INPUT: image.numpy()}

    prepared = source.with_name("prepared.onnx")
    with quiet():
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        # Only these have INT8 kernels that pay for the conversions.
        kinds: dict[str, Any] = {"op_types_to_quantize": ["Conv", "MatMul", "Gemm"]}
        if method == "dynamic":
            quantize_dynamic(str(prepared), str(target), weight_type=QuantType.QUInt8, **kinds)
        else:
            quantize_static(str(prepared), str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, **kinds)
    model = onnx.load(str(target))
    del model.metadata_props[:]
    model.metadata_props.add(key=KEY, value=to_json(metadata))
    onnx.save(model, str(target))


def _batches(run: Run, tasks: dict[str, Task]) -> Any:
    return EvaluationBatches(run.build_dataset("val"), tasks, run.size, run.batch_size, rank=0, world=1,
                              workers=0, on_fault=run.loading.on_fault)


def _measure(model: FileModel, run: Run) -> tuple[dict[str, tuple[float, str]], float]:
    """Headline and its accumulation by task, and seconds per image in the model alone."""
    spent, images = 0.0, 0

    def forward(image: Tensor) -> dict[str, Tensor]:
        nonlocal spent, images
        start = time.perf_counter()
        raw = model.raw(image)
        spent, images = spent + time.perf_counter() - start, images + len(image)
        return raw

    predictors: dict[str, BatchPredictor] = {"network": lambda batch: framed_predictions(batch, forward, model.tasks)}
    metrics = measure(predictors, _batches(run, model.tasks), model.tasks, torch.device("cpu"))["network"]
    return ({name: (metric.compute()[model.tasks[name].headline], metric.accumulation)
             for name, metric in metrics.items()}, spent / max(1, images))
