"""Inverse depth: loss and errors in closed form, zoom, what infinitely far pixels do, the median as baseline."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polyptych.data.geometry import Geometry
from polyptych.errors import InputError
from polyptych.tasks.inverse_depth import InverseDepth
from polyptych.types import LabelInfo

FAR = 1 / 65535  # MTAN's label of what is infinitely far
TARGET = torch.tensor([[[0.2, 0.4], [FAR, float("nan")]]])
VALID = torch.tensor([[[True, True], [True, False]]])
RAW = torch.tensor([[[[0.26, 0.3], [0.01, 9.0]]]])


def build(unit: str = "", **options):
    return InverseDepth.Config(**options).build(labels=LabelInfo(unit=unit))


def measure(task, prediction, target, valid):
    metric = task.metric()
    metric.update(prediction, target, valid)
    return metric.compute()


def test_loss_and_errors_in_closed_form():
    task = build()
    loss = task.full_size_loss(RAW, TARGET, VALID)
    assert float(loss.sum) == pytest.approx(0.06 + 0.1 + 0.01 - FAR) and loss.count == 3
    result = measure(task, task.decode(RAW), TARGET, VALID)
    assert result["abs"] == pytest.approx((0.06 + 0.1 + 0.01 - FAR) / 3)
    assert result["RMSE"] == pytest.approx(((0.06**2 + 0.1**2 + (0.01 - FAR) ** 2) / 3) ** 0.5)
    assert result["rel"] == pytest.approx((0.3 + 0.25 + 0.01 * 65535 - 1) / 3, rel=1e-5)
    assert [result[f"delta{k}"] for k in (1, 2, 3)] == pytest.approx([0, 200 / 3, 200 / 3])


def test_what_is_infinitely_far_dominates_rel_unless_it_is_left_out():
    target = torch.full((1, 10, 10), 0.1)
    target[0, 0] = FAR  # a tenth
    prediction = torch.full((1, 10, 10), 0.11)
    valid = torch.ones(1, 10, 10, dtype=torch.bool)
    assert measure(build(), prediction, target, valid)["rel"] > 700
    task = build(smallest=3e-5)
    assert measure(task, prediction, target, valid)["rel"] == pytest.approx(0.1, rel=1e-4)
    _, kept = task.move(target[0], valid[0], Geometry((10, 10), (10, 10), (0, 0, 10, 10)))
    assert not kept[0].any() and kept[1:].all()
    two = torch.full((1, 10, 10), 2 / 65535)
    assert measure(task, two, two, valid)["abs"] == 0  # the limit lies between 1/65535 and 2/65535


def test_zero_is_infinitely_far_and_counts_in_abs_only():
    target = torch.tensor([[[0.0, 10.0]]])
    result = measure(build("px"), torch.tensor([[[4.0, 12.0]]]), target, torch.ones(1, 1, 2, dtype=torch.bool))
    assert result["abs"] == pytest.approx(3) and result["rel"] == pytest.approx(0.2)
    assert result["delta1"] == pytest.approx(100)


def test_negative_predictions_decode_to_infinitely_far():
    assert torch.equal(build().decode(torch.tensor([[[[-1.0, 0.5]]]])), torch.tensor([[[0.0, 0.5]]]))


@pytest.mark.parametrize(("zoom", "factor"), [("multiply", 2.0), ("divide", 0.5), ("keep", 1.0)])
def test_zoom(zoom, factor):
    window = Geometry((4, 4), (4, 4), (1, 1, 2, 2), zoom=2.0)
    target = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    moved, valid = build(zoom=zoom).move(target, torch.ones(4, 4, dtype=torch.bool), window)
    assert valid.all()
    assert torch.allclose(moved[::2, ::2], factor * target[1:3, 1:3])


def test_zoom_agrees_with_that_of_depth():
    """Depth and inverse depth of one scene stay each other's inverse."""
    from polyptych.tasks.depth import Depth

    window = Geometry((6, 6), (6, 6), (1, 2, 4, 4), mirror=True, zoom=1.5)
    depth = torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) * 9 + 1
    everywhere = torch.ones(6, 6, dtype=torch.bool)
    near, _ = build().move(1 / depth, everywhere, window)
    far, _ = Depth.Config().build(labels=LabelInfo()).move(depth, everywhere, window)
    assert torch.allclose(near * far, torch.ones(6, 6))


@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=1, max_size=4), st.integers(0, 31))
def test_no_constant_beats_the_baseline(images, other):
    trivial = build().trivial()
    for image in images:
        target = torch.tensor([image], dtype=torch.float32)
        trivial.update(target, torch.ones_like(target, dtype=torch.bool))
    pixels = np.concatenate(images)
    constant = float(trivial.prediction((1, 1)))
    assert np.abs(pixels - constant).sum() <= np.abs(pixels - other).sum() + 1e-4


def test_the_baseline_of_labels_that_are_all_different_stays_small(monkeypatch):
    monkeypatch.setattr("polyptych.tasks.inverse_depth.MOST_VALUES", 3000)
    trivial, seen = build().trivial(), []
    for seed in range(5):
        seen.append(1 / (1 + 79 * torch.rand(30, 100, generator=torch.Generator().manual_seed(seed)).double()))
        trivial.update(seen[-1].float(), torch.ones(30, 100, dtype=torch.bool))
    assert float(trivial.prediction((1, 1))) == pytest.approx(float(torch.stack(seen).median()), rel=2**-14)
    assert len(trivial._values) < 15_000


def test_faults():
    task, valid = build(), torch.ones(1, 2, dtype=torch.bool)
    assert task.fault(torch.tensor([[0.0, 0.5]]), valid) is None
    for wrong in (-0.1, float("nan"), float("inf")):
        assert "inverse depth" in task.fault(torch.tensor([[wrong, 0.5]]), valid)
        assert task.fault(torch.tensor([[wrong, 0.5]]), torch.tensor([[False, True]])) is None


def test_pictures_are_brighter_for_what_is_near_and_know_the_unit():
    image = np.zeros((1, 2, 3), np.uint8)
    for unit, values in (("", [0.0, 0.25]), ("px", [0.0, 64.0])):
        far, near = build(unit).paint(torch.tensor([values]), image)[0].astype(int).sum(-1)
        assert near > far + 100
    same = build("px", brightest=1000.0).paint(torch.tensor([[0.0, 64.0]]), image)[0].astype(int).sum(-1)
    assert abs(same[0] - same[1]) < 60


@pytest.mark.parametrize(("options", "message"), [
    ({"smallest": -1.0}, "inverse_depth.smallest: got -1.0"),
    ({"smallest": float("nan")}, "inverse_depth.smallest: got nan"),
    ({"brightest": 0.0}, "inverse_depth.brightest: got 0.0"),
])
def test_options_out_of_range(options, message):
    with pytest.raises(InputError, match=message):
        build(**options)
