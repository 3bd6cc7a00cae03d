"""odsF as a metric of a run: the benchmark on decoded predictions, streamed and merged."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyptych.evaluation_record import Evaluation
from polyptych.metrics.boundary_benchmark import BoundaryBenchmark
from polyptych.metrics.boundary_scores import BoundaryScores
from polyptych.protocols.qualification import qualify
from polyptych.tasks.boundaries import Boundaries
from polyptych.types import LabelInfo

SIZE = (40, 56)


def maps(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted strengths and true boundaries."""
    random = torch.Generator().manual_seed(seed)
    truth = (torch.rand(count, *SIZE, generator=random) > 0.96).float()
    noise = torch.rand(count, *SIZE, generator=random)
    return 0.6 * truth.roll(1, 2) + 0.4 * noise, truth


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 99), cut=st.integers(1, 3))
def test_any_split_and_merge_give_what_the_benchmark_gives(seed: int, cut: int) -> None:
    predictions, truths = maps(4, seed)
    valid = torch.ones(4, *SIZE, dtype=torch.bool)
    first, second, whole = BoundaryScores("nyud"), BoundaryScores("nyud"), BoundaryBenchmark("nyud")
    first.update(predictions[:cut], truths[:cut], valid[:cut])
    second.update(predictions[cut:], truths[cut:], valid[cut:])
    first.merge(second)
    for prediction, truth in zip(predictions, truths, strict=True):
        whole.add((255 * prediction.double()).round().numpy() / 255, [truth.numpy() > 0])
    expected = whole.compute()
    for name, value in first.compute().items():
        assert np.isclose(value, 100 * expected[name], atol=1e-9)


def test_pixels_without_a_label_do_not_count() -> None:
    predictions, truths = maps(1, 0)
    valid = torch.ones(1, *SIZE, dtype=torch.bool)
    valid[:, :, 28:] = False
    half, spoiled = BoundaryScores("nyud"), BoundaryScores("nyud")
    half.update(predictions, truths, valid)
    spoiled.update(torch.where(valid, predictions, 1), torch.where(valid, truths, 1), valid)
    assert half.compute() == spoiled.compute()


def test_it_is_measured_only_when_asked_for() -> None:
    assert Boundaries.Config().build(labels=LabelInfo()).final_metric() is None
    metric = Boundaries.Config(benchmark="pascal").build(labels=LabelInfo()).final_metric()
    assert metric is not None and metric.options == {"benchmark": "pascal"}
    assert all(value != value for value in metric.compute().values())  # NaN: nothing was seen


def test_a_score_belongs_to_the_protocol_that_suppresses_alike() -> None:
    entry = {"accumulation": "global", "options": {"benchmark": "pascal"}, "metrics": {"F": 1.0, "odsF": 70.0}}
    record = {"protocol": "pascal_context-21-native-pascal_mt", "split": "test", "images": 5105, "skipped": [],
              "input_size": [512, 512], "label_size": None, "tasks": {"boundaries": entry}}
    found = qualify(Evaluation.read(record))
    assert "ASTMT-P" in found.notes
    assert "benchmark pascal instead of pascal_survey" in found.reasons["SURV-P"]
    unmeasured = {**entry, "options": {}, "metrics": {"F": 1.0}}
    assert "SURV-P" in qualify(Evaluation.read({**record, "tasks": {"boundaries": unmeasured}})).notes
