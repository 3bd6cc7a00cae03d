"""Evaluation at the native resolution of the labels, always beside the best constant prediction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyptych import distributed
from polyptych.data.loading import evaluation_batches
from polyptych.errors import InputError
from polyptych.metrics._base import Metric
from polyptych.prediction import load_network
from polyptych.record import write_json
from polyptych.reports.examples import write_examples
from polyptych.reports.page import write_report
from polyptych.reports.tables import terminal_table
from polyptych.run import Run
from polyptych.tasks._base import Task, Trivial, resize
from polyptych.types import Batch

Predictor = Callable[[Batch], dict[str, Tensor]]
"""Decoded predictions for a batch, by task, at the size of the labels."""


class Evaluator:
    """Measures networks on the splits of one run's data.

    The image is brought to the run's input size; predictions are brought back to the labels' own size (raw
    predictions, bilinear) and only then decoded and measured. Trivial baselines are learned once from training labels.
    """

    def __init__(self, run: Run, tasks: dict[str, Task], device: torch.device):
        self.run, self.tasks, self.device = run, tasks, device
        self._trivial_metrics: dict[str, dict[str, Metric]] = {}

    def evaluate(self, network: nn.Module, split: str) -> dict[str, Any]:
        """The record that evaluation/SPLIT.json holds (all but the facts that the caller knows: step, weights)."""
        start = time.monotonic()
        predictors: dict[str, Predictor] = {"network": self._network_predictor(network)}
        if split not in self._trivial_metrics:
            predictors["trivial"] = self._trivial_predictor()
        dataset = self.run.build_dataset(split)
        batches = evaluation_batches(
            dataset, self.tasks, self.run.size, self.run.batch_size, rank=distributed.rank(),
            world=distributed.world(), workers=self.run.loading.workers, on_fault=self.run.loading.on_fault)
        metrics = measure(predictors, batches, self.tasks, self.device)
        if "trivial" in metrics:
            self._trivial_metrics[split] = metrics["trivial"]
        tasks = {name: self._entry(task, metrics["network"][name], self._trivial_metrics[split][name])
                 for name, task in self.tasks.items()}
        size = self.run.size
        return {
            "protocol": dataset.protocol, "split": split, "images": len(dataset),
            "skipped": list(batches.faults.values()),
            "input_size": list(size) if size else None, "seconds": time.monotonic() - start,
            "tasks": tasks, "skill": sum(entry["skill"] for entry in tasks.values()) / len(tasks),
        }

    def _entry(self, task: Task, metric: Metric, trivial: Metric) -> dict[str, Any]:
        values, baseline = metric.compute(), trivial.compute()
        return {
            "headline": task.headline, "metrics": values, "trivial": baseline,
            "higher_is_better": task.higher_is_better, "unit": task.labels.unit, "note": task.labels.note,
            "skill": skill(values[task.headline], baseline[task.headline], task.perfect), "classes": metric.breakdown(),
        }

    def _network_predictor(self, network: nn.Module) -> Predictor:
        precision = getattr(torch, self.run.execution.precision)
        network.eval()

        def predict(batch: Batch) -> dict[str, Tensor]:
            with torch.autocast(self.device.type, precision, enabled=precision is not torch.float32):
                raw = network(batch.image).final
            return {name: task.decode(to_native(raw[name].float(), batch, name)) for name, task in self.tasks.items()}

        return predict

    def _trivial_predictor(self) -> Predictor:
        trivials = self._learn_trivials()

        @cache
        def decoded(name: str, size: tuple[int, int]) -> Tensor:
            return self.tasks[name].decode(trivials[name].prediction(size).to(self.device))

        def predict(batch: Batch) -> dict[str, Tensor]:
            constants = {name: decoded(name, tuple(batch.valid[name].shape[-2:])) for name in self.tasks}
            return {name: value.expand(len(batch.image), *value.shape[1:]) for name, value in constants.items()}

        return predict

    def _learn_trivials(self) -> dict[str, Trivial]:
        """Constants learned from evenly spaced training labels; the same in every process."""
        dataset = self.run.build_dataset("train")
        trivials = {name: task.trivial() for name, task in self.tasks.items()}
        number = min(self.run.monitoring.trivial_samples, len(dataset))
        for position in range(number):
            try:
                sample = dataset.read(position * len(dataset) // number)
            except InputError:
                if self.run.loading.on_fault == "stop":
                    raise
                continue
            for name in sample.target:
                trivials[name].update(sample.target[name], sample.valid[name])
        return trivials


@torch.inference_mode()
def measure(predictors: dict[str, Predictor], batches: Iterable[Batch], tasks: dict[str, Task],
            device: torch.device) -> dict[str, dict[str, Metric]]:
    """Metrics of several predictors in one pass over the data, added up over processes."""
    metrics = {who: {name: task.metric() for name, task in tasks.items()} for who in predictors}
    for batch in batches:
        batch = batch.to(device)
        for who, predict in predictors.items():
            for name, decoded in predict(batch).items():
                metrics[who][name].update(decoded, batch.target[name], batch.valid[name])
    for metric in (metric for group in metrics.values() for metric in group.values()):
        distributed.merge(metric)
    return metrics


def to_native(prediction: Tensor, batch: Batch, task: str) -> Tensor:
    """A raw prediction brought from the image's size to that of the labels, whose padding it leaves at zero."""
    valid, image_size = batch.valid[task], tuple(batch.image.shape[-2:])
    size = (valid.shape[-2], valid.shape[-1])
    if all(info.content == image_size and info.native == size for info in batch.info):
        return resize(prediction, size)
    result = prediction.new_zeros(*prediction.shape[:2], *size)
    for index, info in enumerate(batch.info):
        (h, w), (native_h, native_w) = info.content, info.native
        result[index, :, :native_h, :native_w] = resize(prediction[index : index + 1, :, :h, :w], info.native)[0]
    return result


def skill(value: float, trivial: float, perfect: float) -> float:
    """Skill score (value - trivial) / (perfect - trivial): 0 is the trivial baseline, 1 is perfect; it does not
    depend on direction or unit, so that it can be averaged over tasks."""
    return (value - trivial) / (perfect - trivial) if perfect != trivial else float("nan")


def evaluate(folder: Path, *, splits: Sequence[str] = ("test",), weights: str = "") -> dict[str, dict[str, Any]]:
    """Measure a run's network and write ``evaluation/SPLIT.json`` for every split.

    Args:
        weights: ``last`` or ``best``; empty takes what the run selects.

    Returns:
        The records by split.
    """
    run, tasks, network, step = load_network(folder, weights)
    device = distributed.local_device(run.execution.device)
    network.to(device)
    evaluator, results = Evaluator(run, tasks, device), {}
    for split in splits:
        results[split] = evaluator.evaluate(network, split) | {"step": step, "weights": weights or run.select}
        if distributed.is_main():
            (folder / "evaluation").mkdir(exist_ok=True)
            write_json(folder / "evaluation" / f"{split}.json", results[split])
    return results


def finish(folder: Path, say: Callable[[object], None]) -> Path:
    """The end of a run: validation and test numbers, example pictures, and the report."""
    result = evaluate(folder, splits=("val", "test"))["test"]
    if distributed.is_main():
        say(terminal_table(result))
        write_examples(folder)
        write_report(folder)
        say(f"report: {folder / 'report.html'}")
    distributed.barrier()
    return folder / "report.html"
