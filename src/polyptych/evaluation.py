"""Evaluation at the native resolution of the labels, always alongside the best constant prediction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from polyptych import devices, distributed
from polyptych.data.loading import EvaluationBatches
from polyptych.datasets._base import Dataset
from polyptych.errors import InputError
from polyptych.evaluation_record import Evaluation, ImageList, TaskResult
from polyptych.folder_lock import hold
from polyptych.frames import Frame, framed_labels, framed_predictions, frames
from polyptych.hub import local_folder
from polyptych.metrics._accumulation import number_name
from polyptych.metrics._base import FinalMetric, Metric
from polyptych.metrics._resampling import Resampling
from polyptych.prediction.model import load_network
from polyptych.protocols.qualification import qualify
from polyptych.run import Run
from polyptych.tasks._base import Task, Trivial
from polyptych.types import Batch

T = TypeVar("T")

BatchPredictor = Callable[[Batch], dict[str, list[Tensor]]]
"""Returns the decoded predictions for a batch, by task, one tensor per frame (:mod:`polyptych.frames`)."""

MOST_SIZES = 32
"""Pairs of task and native size whose constant predictions are cached."""

LONGEST_ID = 256
"""Bytes of an image's id and size that processes exchange."""


class Evaluator:
    """Evaluates networks on the splits of one run's data.

    Images are resized to the run's input size; raw predictions are resized to the labels' native size (bilinear), and
    only then decoded and measured. Trivial baselines are computed once from training labels.
    """

    def __init__(self, run: Run, tasks: dict[str, Task], device: torch.device):
        self.run, self.tasks, self.device = run, tasks, device
        self._trivial_metrics: dict[str, dict[str, Metric]] = {}
        self._datasets: dict[str, Dataset] = {}

    def evaluate(self, network: nn.Module, split: str, *, final: bool = False) -> Evaluation:
        """Evaluate a network on one split. Fields that only the caller knows (step, weights), and the protocols that
        follow from them, stay empty.

        Args:
            final: also compute metrics that are too slow for validation during training.
        """
        start = time.monotonic()
        predictors: dict[str, BatchPredictor] = {"network": self.network_predictor(network)}
        if split not in self._trivial_metrics:
            predictors["trivial"] = self.trivial_predictor()
        dataset = self._dataset(split)
        batches = EvaluationBatches(
            dataset, self.tasks, self.run.size, self.run.batch_size, rank=distributed.rank(),
            world=distributed.world(), workers=self.run.loading.workers, pin_memory=devices.pins(self.device),
            on_fault=self.run.loading.on_fault)
        seen: list[str] = []
        watched = Resampling()
        metrics = measure(predictors, _noting(batches, seen), self.tasks, self.device, final=final,
                          watched=watched if final else None)
        ids, sizes = _all_images(seen, len(dataset))
        if "trivial" in metrics:
            self._trivial_metrics[split] = metrics["trivial"]
        tasks = {name: _result(task, metrics["network"][name], self._trivial_metrics[split][name],
                               metrics["final"].get(name)) for name, task in self.tasks.items()}
        return Evaluation(
            protocol=dataset.protocol, split=split, images=len(dataset), skipped=list(batches.faults.values()),
            input_size=self.run.size, label_size=sizes[0] if len(sizes) == 1 else None,
            batch_size=self.run.batch_size, processes=distributed.world(), seed=self.run.seed,
            seconds=time.monotonic() - start, tasks=tasks,
            scores=dataset.scores({name: task.own_metrics for name, task in tasks.items()}),
            skill=sum(task.skill for task in tasks.values()) / len(tasks),
            image_list=ImageList.of(ids), image_ids=ids,
            resampled=watched.record({name: task.headline for name, task in self.tasks.items()},
                                     self.run.batch_size) if final else None)

    def _dataset(self, split: str) -> Dataset:
        """A split, opened once: looking for the files of a large one takes as long as a validation."""
        if split not in self._datasets:
            self._datasets[split] = self.run.build_dataset(split)
        return self._datasets[split]

    def network_predictor(self, network: nn.Module) -> BatchPredictor:
        """Predictor of a network, which is put into evaluation mode."""
        precision = getattr(torch, self.run.execution.precision)
        network.eval()

        def forward(image: Tensor) -> dict[str, Tensor]:
            with torch.autocast(self.device.type, precision, enabled=precision is not torch.float32):
                raw: dict[str, Tensor] = network(image).final
            return raw

        return lambda batch: framed_predictions(batch, forward, self.tasks)

    def trivial_predictor(self) -> BatchPredictor:
        """Predictor that returns the best constants, computed from training labels."""
        trivials = self._learn_trivials()

        @lru_cache(MOST_SIZES)
        def decoded(name: str, size: tuple[int, int]) -> Tensor:
            return self.tasks[name].decode(trivials[name].prediction(size).to(self.device))

        def constant(name: str, part: Frame) -> Tensor:
            value = decoded(name, part.native)
            return value.expand(part.images, *value.shape[1:])

        return lambda batch: {name: [constant(name, part) for part in frames(batch)] for name in self.tasks}

    def _learn_trivials(self) -> dict[str, Trivial]:
        """Constants computed from evenly spaced training labels; the same in every process."""
        dataset = self._dataset("train")
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
def measure(predictors: dict[str, BatchPredictor], batches: Iterable[Batch], tasks: dict[str, Task],
            device: torch.device, *, final: bool = False,
            watched: Resampling | None = None) -> dict[str, dict[str, Metric]]:
    """Metrics of several predictors in one pass over the data, summed over processes. Tasks with slow final metrics
    have them under ``final``, for the predictor ``network`` alone. ``watched`` resamples the metrics of ``network``."""
    metrics = {who: {name: task.metric() for name, task in tasks.items()} for who in predictors}
    slow = {name: task.final_metric() for name, task in tasks.items()} if final else {}
    metrics["final"] = {name: metric for name, metric in slow.items() if metric is not None}
    if watched is not None:
        watched.watch(metrics["network"], distributed.rank())
    place = devices.for_metrics(device)
    for batch in batches:
        measured = batch.to(place)
        labels = {name: framed_labels(measured, name, task) for name, task in tasks.items()}
        batch = measured if place == device else batch.to(device)
        for who, predict in predictors.items():
            for name, decoded in predict(batch).items():
                seen = [(prediction.to(place), *label) for prediction, label in zip(decoded, labels[name], strict=True)]
                metrics[who][name].update_batch(seen)
                if who == "network" and name in metrics["final"]:
                    metrics["final"][name].update_batch(seen)
        if watched is not None:
            watched.block()
    for metric in (metric for group in metrics.values() for metric in group.values()):
        distributed.merge(metric)
    for metric in watched.replicates.values() if watched else ():
        distributed.merge(metric)
    return metrics


def _noting(batches: Iterable[Batch], seen: list[str]) -> Iterator[Batch]:
    """Pass the batches through, and append the native size and id of every image to ``seen``."""
    for batch in batches:
        seen += [f"{info.native[0]}x{info.native[1]} {info.id}" for info in batch.info]
        yield batch


def _all_images(seen: Sequence[str], length: int) -> tuple[list[str], list[tuple[int, int]]]:
    """Ids of the images that any process saw, and the native sizes that occur."""
    if distributed.world() > 1:
        # Each process fills its own rows of a table of bytes, so that the sum over processes is the whole table.
        table = torch.zeros(length, LONGEST_ID, dtype=torch.uint8)
        for row, text in enumerate(seen):
            code = text.encode()[:LONGEST_ID]
            table[distributed.rank() + row * distributed.world(), :len(code)] = torch.tensor(list(code)).byte()
        rows = distributed.total(table)
        seen = [bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in rows if bool(row.any())]
    sizes = sorted({text.partition(" ")[0] for text in seen})
    sides = [size.partition("x") for size in sizes]
    return [text.partition(" ")[2] for text in seen], [(int(height), int(width)) for height, _, width in sides]


def _result(task: Task, metric: Metric, trivial: Metric, final: Metric | None) -> TaskResult:
    values, baseline = metric.compute(), trivial.compute()
    options, directions = metric.options, task.higher_is_better
    if isinstance(final, FinalMetric):
        values, options = values | final.compute(), options | final.options
        directions = directions | final.higher_is_better
    reached = skill(values[task.headline], baseline[task.headline], task.perfect)

    def named(by_metric: Mapping[str, T]) -> dict[str, T]:
        return {number_name(name, metric.accumulation): value for name, value in by_metric.items()}

    return TaskResult(
        headline=number_name(task.headline, metric.accumulation), metrics=named(values), trivial=named(baseline),
        accumulation=metric.accumulation, ignores=metric.ignores, options=options, higher_is_better=named(directions),
        unit=task.labels.unit, note=task.labels.note, skill=reached, classes=metric.breakdown())


def skill(value: float, trivial: float, perfect: float) -> float:
    """Skill score (value - trivial) / (perfect - trivial): 0 is the trivial baseline, 1 is perfect. It depends on
    neither the direction nor the unit of the metric, so it can be averaged over tasks."""
    return (value - trivial) / (perfect - trivial) if perfect != trivial else float("nan")


def evaluate(folder: Path, *, splits: Sequence[str] = ("test",), weights: str = "") -> dict[str, Evaluation]:
    """Evaluate a run's network and write, for every split, ``evaluation/SPLIT.json`` and the ids of its images,
    ``evaluation/SPLIT.images.txt``.

    Args:
        weights: ``last`` or ``best``; by default what the run selects.

    Returns:
        The evaluation of each split.
    """
    folder = local_folder(folder)
    run, tasks, network, step = load_network(folder, weights)
    device = distributed.local_device(run.execution.device)
    network.to(device)
    evaluator, found = Evaluator(run, tasks, device), {}
    with hold(folder) if distributed.is_main() else nullcontext():
        for split in splits:
            measured = replace(evaluator.evaluate(network, split, final=True), step=step, weights=weights or run.select)
            judged = qualify(measured)
            found[split] = replace(measured, protocols=judged.notes, other_protocols=judged.reasons)
            if distributed.is_main():
                found[split].write(folder)
    return found
