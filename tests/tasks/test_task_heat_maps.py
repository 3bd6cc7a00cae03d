"""keypoints2d and edge_texture: the error in closed form, its accumulation, the median as baseline, faults."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyptych.tasks._base import CATALOG
from polyptych.types import LabelInfo

NAMES = ("keypoints2d", "edge_texture")
TARGET = torch.tensor([[[-1.0, 0.5], [1.0, float("nan")]]])
VALID = torch.tensor([[[True, True], [True, False]]])


def build(name="keypoints2d", **options):
    return CATALOG.load(name).Config(**options).build(labels=LabelInfo())


@pytest.mark.parametrize("name", NAMES)
def test_loss_and_metric_in_closed_form(name):
    task = build(name)
    raw = torch.tensor([[[[-3.0, 0.25], [0.0, 7.0]]]])
    loss = task.full_size_loss(raw, TARGET, VALID)
    assert float(loss.sum) == pytest.approx(2 + 0.25 + 1) and loss.count == 3
    metric = task.metric()
    metric.update(task.decode(raw), TARGET, VALID)
    assert metric.compute() == {"abs": pytest.approx((0 + 0.25 + 1) / 3)}  # decoded, -3 is -1
    assert task.standard_weight == 7.0


def test_a_batch_average_weighs_batches_and_the_global_one_pixels():
    target, valid = torch.zeros(2, 1, 4), torch.tensor([[[True] * 4], [[True, False, False, False]]])
    prediction = torch.tensor([[[0.1] * 4], [[0.6] * 4]])
    for over, expected in (("global", (4 * 0.1 + 0.6) / 5), ("image", (0.1 + 0.6) / 2), ("batch", 0.2)):
        metric = build(accumulation=over).metric()
        metric.update(prediction, target, valid)
        assert metric.compute()["abs"] == pytest.approx(expected), over


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=6), min_size=1, max_size=4))
def test_no_constant_beats_the_median(images):
    trivial = build().trivial()
    for values in images:
        target = torch.tensor([[*values, 0.77]])
        trivial.update(target, torch.tensor([[True] * len(values) + [False]]))
    seen = np.concatenate(images)
    constant = float(trivial.prediction((2, 3)).unique())
    best = min(np.abs(seen - value).mean() for value in seen)
    assert np.abs(seen - constant).mean() <= best + 1 / 4000


def test_faults_and_pictures():
    task = build("edge_texture")
    assert task.fault(TARGET[0], VALID[0]) is None
    assert task.fault(TARGET[0] * 3, VALID[0]) == "response -3 (3 such pixels; responses lie in [-1, 1])"
    assert "nan" in task.fault(TARGET[0], ~VALID[0])
    picture = task.paint(torch.tensor([[-1.0, 0.0, 1.0, 4.0]]), np.zeros((1, 4, 3), np.uint8))
    assert picture[0, :, 0].tolist() == [0, 128, 255, 255]
