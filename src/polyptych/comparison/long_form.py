"""A comparison as a CSV file in long form: one number per line, for any other tool."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from polyptych.comparison.results import Comparison, MethodResult
from polyptych.comparison.statistics import Estimate
from polyptych.comparison.tuning import in_words
from polyptych.record import encode
from polyptych.reports.tables import is_number


def write_csv(comparison: Comparison, path: Path) -> None:
    """One number per line (long form), with its values by seed; empty fields are absent."""
    comparable = " ".join(comparison.protocols)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["protocol", "comparable_with", "split", "network", "balancer", "reference", "task", "metric",
                         "better", "mean", "half_width", "seeds", "by_seed", "settings", "group"])
        for method in comparison.methods:
            for task, metric, better, estimate in _quantities(comparison, method):
                writer.writerow([
                    comparison.protocol, comparable, comparison.split, method.network, method.balancer,
                    "yes" if method.reference else "no", task, metric, better, _written(estimate.mean),
                    _written(estimate.half_width), " ".join(map(str, estimate.by_seed)),
                    " ".join(map(_written, estimate.by_seed.values())),
                    "untuned" if method.untuned else in_words(method.settings), method.group])
        for task, facts in comparison.tasks.items():
            for metric, value in facts.trivial.items():
                writer.writerow([comparison.protocol, comparable, comparison.split, "trivial", "", "no", task, metric,
                                 _better(facts.higher_is_better.get(metric)), _written(value), "", "", "", "", ""])


def _quantities(comparison: Comparison, method: MethodResult) -> Iterator[tuple[str, str, str, Estimate]]:
    for task, metrics in method.metrics.items():
        directions = comparison.tasks[task].higher_is_better
        for metric, estimate in metrics.items():
            yield task, metric, _better(directions.get(metric)), estimate
        if (delta := method.deltas[task]) is not None:
            yield task, "delta_percent", "higher", delta
    if method.delta_mtl is not None:
        yield "", "delta_mtl_percent", "higher", method.delta_mtl
    for name, value in {"p_value": method.p_value, "p_corrected": method.p_corrected,
                        "image_deviation_percent": method.image_deviation}.items():
        if value is not None:
            yield "", name, "", Estimate(value, None, {})
    if method.over_untuned is not None:
        yield "", "delta_mtl_over_untuned_percent", "higher", method.over_untuned
    for task, rank in method.ranks.items():
        yield task, "rank", "lower", Estimate(rank, None, {})
    yield "", "mean_rank", "lower", Estimate(method.mean_rank, None, {})
    yield "", "training_seconds", "", method.training_seconds
    if method.processor_seconds is not None and is_number(method.processor_seconds.mean):
        yield "", "processor_seconds", "", method.processor_seconds
    if method.cost is not None:
        units = {"memory_inference": "memory_inference_bytes", "memory_training": "memory_training_bytes",
                 "latency": "latency_seconds", "throughput": "images_per_second"}
        for name, value in encode(method.cost).items():
            yield "", units.get(name, name), "higher" if name == "throughput" else "lower", Estimate(value, None, {})


def _better(higher: bool | None) -> str:
    return "" if higher is None else "higher" if higher else "lower"


def _written(value: float | None) -> str:
    return repr(value) if is_number(value) else ""
