"""Evaluation at the native resolution of the labels, always beside the best constant prediction."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polyptych import distributed
from polyptych.data.loading import evaluation_batches
from polyptych.errors import InputError
from polyptych.folder_lock import hold
from polyptych.frames import Frame, framed_labels, framed_predictions, frames
from polyptych.metrics._accumulation import number_name
from polyptych.metrics._base import FinalMetric, Metric
from polyptych.prediction.model import load_network
from polyptych.protocols.qualification import qualify
from polyptych.record import write_json, write_whole
from polyptych.run import Run
from polyptych.tasks._base import Task, Trivial
from polyptych.types import Batch

Predictor = Callable[[Batch], dict[str, list[Tensor]]]
"""Decoded predictions for a batch, by task, one tensor for every frame (:mod:`polyptych.frames`)."""

MOST_SIZES = 32
"""Pairs of task and native size whose constant predictions are kept."""

LONGEST_ID = 256
"""Bytes of an image's id and size that processes exchange."""


class Evaluator:
    """Measures networks on the splits of one run's data.

    The image is brought to the run's input size; predictions are brought back to the labels' own size (raw
    predictions, bilinear) and only then decoded and measured. Trivial baselines are learned once from training labels.
    """

    def __init__(self, run: Run, tasks: dict[str, Task], device: torch.device):
        self.run, self.tasks, self.device = run, tasks, device
        self._trivial_metrics: dict[str, dict[str, Metric]] = {}

    def evaluate(self, network: nn.Module, split: str, *, final: bool = False) -> dict[str, Any]:
        """What evaluation/SPLIT.json is made of (all but the facts that the caller knows: step, weights), with the
        names of the tasks' own metrics; :func:`finished_record` makes the rest. ``final`` also measures what takes too
        long to be watched."""
        start = time.monotonic()
        predictors: dict[str, Predictor] = {"network": self.network_predictor(network)}
        if split not in self._trivial_metrics:
            predictors["trivial"] = self.trivial_predictor()
        dataset = self.run.build_dataset(split)
        batches = evaluation_batches(
            dataset, self.tasks, self.run.size, self.run.batch_size, rank=distributed.rank(),
            world=distributed.world(), workers=self.run.loading.workers, on_fault=self.run.loading.on_fault)
        seen: list[str] = []
        metrics = measure(predictors, _noting(batches, seen), self.tasks, self.device, final=final)
        ids, sizes = _all_images(seen, len(dataset), self.device)
        if "trivial" in metrics:
            self._trivial_metrics[split] = metrics["trivial"]
        tasks = {name: self._entry(task, metrics["network"][name], self._trivial_metrics[split][name],
                                   metrics["final"].get(name)) for name, task in self.tasks.items()}
        size = self.run.size
        return {
            "protocol": dataset.protocol, "split": split, "images": len(dataset),
            "skipped": list(batches.faults.values()),
            "input_size": list(size) if size else None, "label_size": sizes[0] if len(sizes) == 1 else None,
            "image_ids": ids, "batch_size": self.run.batch_size, "processes": distributed.world(),
            "seed": self.run.seed, "seconds": time.monotonic() - start,
            "tasks": tasks,
            "scores": dataset.scores({name: entry["metrics"] for name, entry in tasks.items()}),
            "skill": sum(entry["skill"] for entry in tasks.values()) / len(tasks),
        }

    def _entry(self, task: Task, metric: Metric, trivial: Metric, final: Metric | None) -> dict[str, Any]:
        values, baseline = metric.compute(), trivial.compute()
        options, directions = metric.options, task.higher_is_better
        if isinstance(final, FinalMetric):
            values, options = values | final.compute(), options | final.options
            directions = directions | final.higher_is_better
        return {
            "headline": task.headline, "metrics": values, "trivial": baseline,
            "accumulation": metric.accumulation, "ignores": metric.ignores, "options": options,
            "higher_is_better": directions, "unit": task.labels.unit, "note": task.labels.note,
            "skill": skill(values[task.headline], baseline[task.headline], task.perfect), "classes": metric.breakdown(),
        }

    def network_predictor(self, network: nn.Module) -> Predictor:
        """Decoded predictions of a network, which is put into evaluation mode."""
        precision = getattr(torch, self.run.execution.precision)
        network.eval()

        def forward(image: Tensor) -> dict[str, Tensor]:
            with torch.autocast(self.device.type, precision, enabled=precision is not torch.float32):
                raw: dict[str, Tensor] = network(image).final
            return raw

        return lambda batch: framed_predictions(batch, forward, self.tasks)

    def trivial_predictor(self) -> Predictor:
        """The best constant predictions, learned from training labels."""
        trivials = self._learn_trivials()

        @lru_cache(MOST_SIZES)
        def decoded(name: str, size: tuple[int, int]) -> Tensor:
            return self.tasks[name].decode(trivials[name].prediction(size).to(self.device))

        def constant(name: str, part: Frame) -> Tensor:
            value = decoded(name, part.native)
            return value.expand(part.images, *value.shape[1:])

        return lambda batch: {name: [constant(name, part) for part in frames(batch)] for name in self.tasks}

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
            device: torch.device, *, final: bool = False) -> dict[str, dict[str, Metric]]:
    """Metrics of several predictors in one pass over the data, added up over processes; under ``final`` those of the
    tasks that have such, of the predictor ``network``, or none."""
    metrics = {who: {name: task.metric() for name, task in tasks.items()} for who in predictors}
    slow = {name: task.final_metric() for name, task in tasks.items()} if final else {}
    metrics["final"] = {name: metric for name, metric in slow.items() if metric is not None}
    for batch in batches:
        batch = batch.to(device)
        labels = {name: framed_labels(batch, name, task) for name, task in tasks.items()}
        for who, predict in predictors.items():
            for name, decoded in predict(batch).items():
                seen = [(prediction, *label) for prediction, label in zip(decoded, labels[name], strict=True)]
                metrics[who][name].update_batch(seen)
                if who == "network" and name in metrics["final"]:
                    metrics["final"][name].update_batch(seen)
    for metric in (metric for group in metrics.values() for metric in group.values()):
        distributed.merge(metric)
    return metrics


def _noting(batches: Iterable[Batch], seen: list[str]) -> Iterator[Batch]:
    """The batches as they are; ``seen`` gets the native size and id of every image."""
    for batch in batches:
        seen += [f"{info.native[0]}x{info.native[1]} {info.id}" for info in batch.info]
        yield batch


def _all_images(seen: Sequence[str], length: int, device: torch.device) -> tuple[list[str], list[list[int]]]:
    """The ids of the images that any process saw, and the native sizes that occur."""
    if distributed.world() > 1:
        # Every process fills in its own rows of a table of bytes, so that the sum over processes is the whole.
        table = torch.zeros(length, LONGEST_ID, dtype=torch.uint8)
        for row, text in enumerate(seen):
            code = text.encode()[:LONGEST_ID]
            table[distributed.rank() + row * distributed.world(), :len(code)] = torch.tensor(list(code)).byte()
        rows = distributed.total(table.to(device)).cpu()
        seen = [bytes(row.tolist()).rstrip(b"\0").decode(errors="replace") for row in rows if bool(row.any())]
    sizes = sorted({text.partition(" ")[0] for text in seen})
    return ([text.partition(" ")[2] for text in seen], [[int(side) for side in size.split("x")] for size in sizes])


def finished_record(record: dict[str, Any]) -> dict[str, Any]:
    """The record of one evaluation as it is written: names of numbers that say their accumulation, the image list as
    count and SHA-256 (of the sorted ids, one a line), and the protocols that the numbers belong to."""
    record = dict(record)
    ids = record.pop("image_ids")
    digest = hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()
    record["image_list"] = {"count": len(ids), "sha256": digest}
    record["tasks"] = {name: _named(entry) for name, entry in record["tasks"].items()}
    found = qualify(record)
    return record | {"protocols": found.notes, "other_protocols": found.reasons}


def _named(entry: dict[str, Any]) -> dict[str, Any]:
    how = entry["accumulation"]
    return entry | {"headline": number_name(entry["headline"], how)} | {
        part: {number_name(name, how): value for name, value in entry[part].items()}
        for part in ("metrics", "trivial", "higher_is_better")}


def skill(value: float, trivial: float, perfect: float) -> float:
    """Skill score (value - trivial) / (perfect - trivial): 0 is the trivial baseline, 1 is perfect; it does not
    depend on direction or unit, so that it can be averaged over tasks."""
    return (value - trivial) / (perfect - trivial) if perfect != trivial else float("nan")


def known_skill(record: Mapping[str, Any]) -> tuple[int, float]:
    """How many tasks of a record have a finite skill, and its mean over them (NaN for none): a split need not have
    labels of every task. Compared in this order, a network that got lost in a task never beats one that did not."""
    finite = [entry["skill"] for entry in record["tasks"].values() if math.isfinite(entry["skill"])]
    return len(finite), sum(finite) / len(finite) if finite else float("nan")


def check_measured(record: Mapping[str, Any], where: Path) -> None:
    """Refuse a record in which no task has a number: a table of dashes must not look like a success.

    Raises:
        InputError: it is such a one.
    """
    if not any(math.isfinite(entry["metrics"][entry["headline"]]) for entry in record["tasks"].values()):
        raise InputError(where, f"no number of {', '.join(record['tasks'])} from {record['image_list']['count']} images",
                         "labels that the predictions can be measured with",
                         "check where the labels are looked for, and how the images are split")


def evaluate(folder: Path, *, splits: Sequence[str] = ("test",), weights: str = "") -> dict[str, dict[str, Any]]:
    """Measure a run's network and write ``evaluation/SPLIT.json`` for every split, and the ids of its images into
    ``evaluation/SPLIT.images.txt``.

    Args:
        weights: ``last`` or ``best``; empty takes what the run selects.

    Returns:
        The records by split.
    """
    run, tasks, network, step = load_network(folder, weights)
    device = distributed.local_device(run.execution.device)
    network.to(device)
    evaluator, results = Evaluator(run, tasks, device), {}
    with hold(folder) if distributed.is_main() else nullcontext():
        for split in splits:
            measured = evaluator.evaluate(network, split, final=True) | {"step": step, "weights": weights or run.select}
            results[split] = finished_record(measured)
            if distributed.is_main():
                (folder / "evaluation").mkdir(exist_ok=True)
                write_whole(folder / "evaluation" / f"{split}.images.txt",
                            "".join(f"{name}\n" for name in measured["image_ids"]).encode())
                write_json(folder / "evaluation" / f"{split}.json", results[split])
    return results
