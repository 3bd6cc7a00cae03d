"""How far other test images would move a number: replicates of a metric while it streams."""

from __future__ import annotations

import math

import pytest
import torch

from polyptych.metrics._base import Averaged
from polyptych.metrics._resampling import REPLICATES, Resampling, block_weights
from polyptych.metrics.angles import AngularError
from polyptych.metrics.confusion import ConfusionMatrix
from polyptych.metrics.depth import DepthError

VALID = torch.ones(2, 3, 4, dtype=torch.bool)


def resampled(metric, batches, headline: str) -> list[float]:
    watched = Resampling()
    watched.watch({"task": metric}, 0)
    for prediction, target in batches:
        metric.update_batch([(prediction, target, VALID)])
        watched.block()
    return watched.record({"task": headline}, 2)["headlines"]["task"]


def directly(make, batches, headline: str, replicate: int) -> float:
    """The metric of a set that holds every batch as often as the weights say."""
    metric = make()
    for block, (prediction, target) in enumerate(batches):
        for _ in range(int(block_weights(0, block)[replicate])):
            metric.update_batch([(prediction, target, VALID)])
    return metric.compute()[headline]


def depths(count: int):
    torch.manual_seed(0)
    return [(torch.rand(2, 3, 4) + 0.5, torch.rand(2, 3, 4) + 0.5) for _ in range(count)]


def classes(count: int):
    torch.manual_seed(0)
    return [(torch.randint(0, 5, (2, 3, 4)), torch.randint(0, 5, (2, 3, 4))) for _ in range(count)]


def normals(count: int):
    torch.manual_seed(0)
    return [(torch.randn(2, 3, 3, 4), torch.randn(2, 3, 3, 4)) for _ in range(count)]


@pytest.mark.parametrize(("make", "batches", "headline"), [
    (DepthError, depths(6), "RMSE"), (lambda: Averaged(DepthError), depths(6), "RMSE"),
    (lambda: Averaged(DepthError, "batch"), depths(6), "RMSE"),
    (lambda: ConfusionMatrix(5), classes(6), "mIoU"), (AngularError, normals(6), "mean"),
])
def test_a_replicate_is_the_metric_of_resampled_batches(make, batches, headline: str) -> None:
    plain, watched = make(), make()
    for batch in batches:
        plain.update_batch([(*batch, VALID)])
    found = resampled(watched, batches, headline)
    assert watched.compute() == plain.compute()  # to the last bit
    assert len(found) == REPLICATES and len(set(found)) > REPLICATES / 2
    for replicate in range(0, REPLICATES, 9):
        assert found[replicate] == pytest.approx(directly(make, batches, headline, replicate), rel=1e-9)


def test_the_spread_is_the_standard_error_of_the_mean() -> None:
    torch.manual_seed(1)
    error = torch.randn(400).abs()
    batches = [(torch.full((2, 3, 4), 1 + float(value)), torch.ones(2, 3, 4)) for value in error]
    found = torch.tensor(resampled(DepthError(), batches, "abs"))
    assert float(found.std()) == pytest.approx(float(error.std()) / math.sqrt(400), rel=0.25)  # 7% is one deviation
    assert float(found.mean()) == pytest.approx(float(error.mean()), rel=0.02)


def test_two_networks_are_resampled_alike() -> None:
    batches = depths(20)
    worse = [(prediction + 0.1 * (prediction - target).sign(), target) for prediction, target in batches]
    one, other = (torch.tensor(resampled(DepthError(), some, "abs")) for some in (batches, worse))
    assert float((other - one).std()) < 1e-6 < 0.01 < float(one.std())


def test_nothing_seen_is_no_replicate() -> None:
    assert resampled(DepthError(), [], "RMSE") == []
