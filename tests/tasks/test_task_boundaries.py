"""Boundaries: weighted cross entropy, options, the picture."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from polyptych.data.geometry import Geometry
from polyptych.errors import InputError
from polyptych.tasks.boundaries import Boundaries
from polyptych.types import LabelInfo


def build(**options):
    return Boundaries.Config(**options).build(labels=LabelInfo())


@pytest.mark.parametrize("weight", [0.95, 0.8, 0.5])
def test_loss_is_binary_cross_entropy_with_a_positive_weight(weight):
    logits, target = torch.randn(2, 1, 5, 4) * 5, (torch.rand(2, 5, 4) > 0.7).float()
    valid = torch.rand(2, 5, 4) > 0.3
    expected = (1 - weight) * F.binary_cross_entropy_with_logits(
        logits[:, 0][valid], target[valid], pos_weight=torch.tensor(weight / (1 - weight)), reduction="sum")
    result = build(weight=weight).loss(logits, target, valid)
    assert torch.allclose(result.sum, expected, rtol=1e-5) and result.count == valid.sum()


def test_closed_form():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 1e4]]).view(1, 1, 2, 2)
    target = torch.tensor([[[1.0, 0.0], [0.6, 0.4]]])  # binarized to 1 0 1 0
    expected = 0.95 * math.log(2) + 0.05 * math.log(2) + 0.95 * math.log(4 / 3) + 0.05 * 1e4
    loss = build().full_size_loss(logits, target, torch.ones(1, 2, 2, dtype=torch.bool))
    assert float(loss.sum) == pytest.approx(expected, rel=1e-6)


def test_logits_that_are_not_finite_do_no_harm_where_invalid():
    logits = torch.tensor([0.0, float("nan"), float("inf"), float("-inf")]).view(1, 1, 1, 4).requires_grad_()
    valid = torch.tensor([[[True, False, False, False]]])
    loss = build().full_size_loss(logits, torch.tensor([[[1.0, 1.0, 0.0, 1.0]]]), valid)
    loss.sum.backward()
    assert float(loss.sum.detach()) == pytest.approx(0.95 * math.log(2))
    assert logits.grad.flatten().tolist() == pytest.approx([-0.95 / 2, 0, 0, 0])


def test_options_reach_the_metric():
    metric = build(threshold=0.7, tolerance=0.2).metric()
    prediction, target = torch.zeros(1, 9, 9), torch.zeros(1, 9, 9)
    prediction[0, 4, 4], prediction[0, 0, 0], target[0, 4, 6] = 0.8, 0.6, 1
    metric.update(prediction, target, torch.ones(1, 9, 9, dtype=torch.bool))
    assert metric.compute() == {"F": 100, "precision": 100, "recall": 100}


def test_everything_positive_beats_nothing_positive():
    task = build()
    target = (torch.rand(1, 20, 20) > 0.9).float()
    valid = torch.ones(1, 20, 20, dtype=torch.bool)
    scores = []
    for raw in (task.trivial().prediction((20, 20)), -task.trivial().prediction((20, 20))):
        metric = task.metric()
        metric.update(task.decode(raw), target, valid)
        scores.append(metric.compute()["F"])
    assert scores[0] > scores[1] == 0


def test_boundaries_are_dark_on_white():
    picture = build().paint(torch.tensor([[0.0, 1.0]]), np.zeros((1, 2, 3), np.uint8))
    assert picture.tolist() == [[[255] * 3, [0] * 3]]


def test_fault_and_refusals():
    valid = torch.ones(1, 3, dtype=torch.bool)
    assert build().fault(torch.tensor([[0.0, 1.0, 255.0]]), valid) == (
        "value 255 (1 such pixels; values lie in [0, 1])")
    assert "nan" in build().fault(torch.tensor([[0.0, 1.0, float("nan")]]), valid)
    with pytest.raises(InputError, match=r"boundaries.weight: got 19.0; needs a number from 0 to 1; 0.95 is"):
        build(weight=19.0)


@pytest.mark.parametrize("size", [(60, 80), (29, 41), (100, 90)])
def test_a_line_survives_shrinking_and_stays_thin(size: tuple[int, int]) -> None:
    """Nearest neighbor alone would drop a line or leave dashes."""
    task = Boundaries(Boundaries.Config(), labels=LabelInfo())
    for angle in (0, 1):
        target = torch.zeros(100, 130)
        if angle:
            target[torch.arange(100), torch.arange(100)] = 1
        else:
            target[:, 63] = 1
        moved, valid = task.move(target, torch.ones(100, 130, dtype=torch.bool), Geometry.resize((100, 130), size))
        assert moved.shape == valid.shape == size
        assert set(moved.unique().tolist()) <= {0.0, 1.0}
        per_row = moved.sum(1)
        assert (per_row >= 1).all() and (per_row <= 4).all()
