"""Depth: losses in closed form, the meaning of the raw prediction, zoom, the mean as baseline."""

import math

import numpy as np
import pytest
import torch

from polyptych.data.geometry import Geometry
from polyptych.errors import InputError
from polyptych.tasks.depth import Depth
from polyptych.types import LabelInfo

TARGET = torch.tensor([[[1.0, 2.0], [4.0, float("nan")]]])
VALID = torch.tensor([[[True, True], [True, False]]])
RAW = torch.tensor([[[[1.5, 1.0], [8.0, 3.0]]]])  # off by 0.5, -1, 4
LOSSES = ("l1", "l2", "log_l1", "log_l2", "silog", "berhu")


def build(**options):
    return Depth.Config(**options).build(labels=LabelInfo())


@pytest.mark.parametrize(("loss", "expected"), [
    ("l1", 0.5 + 1 + 4),
    ("l2", 0.25 + 1 + 16),
    ("berhu", 0.5 + (1 + 0.64) / 1.6 + (16 + 0.64) / 1.6),  # c = 0.2 * 4
])
def test_losses_in_meters(loss, expected):
    result = build(loss=loss).full_size_loss(RAW, TARGET, VALID)
    assert float(result.sum) == pytest.approx(expected) and result.count == 3


@pytest.mark.parametrize(("loss", "expected"), [
    ("log_l1", 0 + 1 + 2),
    ("log_l2", 0 + 1 + 4),
    ("silog", 3 * (5 / 3 - 0.5 * (1 / 3) ** 2)),
])
def test_losses_on_logarithms(loss, expected):
    raw = TARGET.nan_to_num(1).log()[:, None] + torch.tensor([[0.0, -1.0], [2.0, 7.0]])
    result = build(loss=loss).full_size_loss(raw, TARGET, VALID)
    assert float(result.sum) == pytest.approx(expected) and result.count == 3


def sobel(image):
    """Both responses at every pixel, by hand."""
    padded, (h, w) = np.pad(image, 1), image.shape
    window = lambda r, c: padded[r:r + h, c:c + w]  # noqa: E731
    across = window(0, 2) - window(0, 0) + 2 * (window(1, 2) - window(1, 0)) + window(2, 2) - window(2, 0)
    down = window(2, 0) - window(0, 0) + 2 * (window(2, 1) - window(0, 1)) + window(2, 2) - window(0, 2)
    return np.stack([across, down])


def test_slopes_count_where_asked():
    make = np.random.default_rng(0)
    raw, target = make.uniform(1, 9, (2, 5, 7)), make.uniform(1, 9, (2, 5, 7))
    everywhere = torch.ones(2, 5, 7, dtype=torch.bool)
    expected = sum(np.abs(sobel(r) - sobel(t)).sum() for r, t in zip(raw, target, strict=True))
    prediction = torch.tensor(raw, dtype=torch.float32)[:, None]
    labels = torch.tensor(target, dtype=torch.float32)
    plain, both = (build(gradient=g).full_size_loss(prediction, labels, everywhere) for g in (0.0, 0.5))
    assert float(both.sum) == pytest.approx(np.abs(raw - target).sum() + 0.5 * expected, rel=1e-5)
    assert float(plain.sum) == pytest.approx(np.abs(raw - target).sum(), rel=1e-5) and both.count == plain.count


def test_slopes_leave_pixels_without_a_label_alone():
    prediction = RAW.clone().requires_grad_()
    loss = build(gradient=1.0).full_size_loss(prediction, TARGET, VALID)
    loss.sum.backward()
    assert torch.isfinite(loss.sum) and prediction.grad[0, 0, 1, 1] == 0 and prediction.grad[0, 0, 0, 0] != 0
    assert float(build(gradient=1.0).full_size_loss(RAW, TARGET, torch.zeros_like(VALID)).sum) == 0
    with pytest.raises(InputError, match=r"depth\.gradient: got -1; needs a number of at least 0"):
        build(gradient=-1.0)


def test_silog_with_lambda_one_ignores_the_scale():
    raw = TARGET.nan_to_num(1).log()[:, None]
    loss = build(loss="silog", silog_lambda=1.0)
    assert float(loss.full_size_loss(raw + 0.7, TARGET, VALID).sum) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_is_the_sum_of_its_images(loss):
    task = build(loss=loss)
    raw, target = torch.randn(4, 1, 3, 5), torch.rand(4, 3, 5) * 9 + 0.1
    valid = torch.rand(4, 3, 5) > 0.5
    parts = [task.loss(raw[i:i + 1], target[i:i + 1], valid[i:i + 1]) for i in range(4)]
    whole = task.loss(raw, target, valid)
    assert torch.allclose(whole.sum, sum(part.sum for part in parts))
    assert whole.count == sum(part.count for part in parts)


@pytest.mark.parametrize("loss", LOSSES)
def test_perfect_predictions_cost_nothing_and_have_finite_gradients(loss):
    task = build(loss=loss)
    label = torch.where(VALID, TARGET, 1)
    raw = (label.log() if task.logarithmic else label)[:, None].clone().requires_grad_()
    result = task.full_size_loss(raw, TARGET, VALID)
    result.sum.backward()
    assert result.sum == 0 and raw.grad.isfinite().all()
    assert torch.allclose(task.decode(raw)[VALID], TARGET[VALID])


@pytest.mark.parametrize("loss", LOSSES)
def test_decoded_depth_is_positive_and_finite(loss):
    raw = torch.tensor([-1e30, -5.0, 0.0, 5.0, 1e30]).view(1, 1, 1, 5)
    decoded = build(loss=loss).decode(raw)
    assert (decoded >= 0.000999).all() and (decoded <= 1000.1).all() and decoded.shape == (1, 1, 5)


def test_zoom_divides_and_multiplying_restores():
    target = torch.rand(6, 8) * 9 + 0.5
    valid = torch.rand(6, 8) > 0.2
    zoom = Geometry((6, 8), (6, 8), (0, 0, 3, 4), zoom=2.0)
    moved, kept = build().move(target, valid, zoom)
    assert torch.allclose(moved * 2, zoom.labels(target)) and torch.equal(kept, zoom.labels(valid))
    assert torch.allclose(moved[::2, ::2] * 2, target[:3, :4])


def test_the_mean_beats_other_constants():
    for loss in ("l1", "log_l1"):
        task = build(loss=loss)
        trivial = task.trivial()
        trivial.update(TARGET[0], VALID[0])
        decoded = task.decode(trivial.prediction((2, 2)))
        assert torch.allclose(decoded, torch.tensor(7 / 3))
        errors = []
        for constant in (7 / 3, 2.0, 2.6, 1.0):
            metric = task.metric()
            metric.update(torch.full((1, 2, 2), constant), TARGET, VALID)
            errors.append(metric.compute()["RMSE"])
        assert errors[0] == min(errors)


def test_fault():
    valid = torch.ones(1, 4, dtype=torch.bool)
    assert build().fault(torch.tensor([[1.0, 0.0, -2.0, 3.0]]), valid) == (
        "depth 0 (2 such pixels; depth lies in (0, 1000] m)")
    for bad in (float("nan"), float("inf"), 1001.0):
        assert "1 such" in build().fault(torch.tensor([[1.0, 2.0, bad, 3.0]]), valid)
    assert build().fault(torch.full((1, 4), -1.0), ~valid) is None


def test_what_is_near_is_bright_and_the_scale_is_shared():
    image = np.zeros((1, 3, 3), np.uint8)
    near, middle, far = build(max_depth=10.0).paint(torch.tensor([[0.5, 5.0, 20.0]]), image)[0].astype(int)
    assert near.sum() > middle.sum() > far.sum()
    alone = build(max_depth=10.0).paint(torch.tensor([[5.0, 5.0, 5.0]]), image)[0, 0]
    assert (alone == middle).all()


def test_accumulation_per_image():
    target = torch.ones(2, 1, 2)
    prediction = torch.tensor([[[2.0, 2.0]], [[4.0, 4.0]]])
    valid = torch.tensor([[[True, True]], [[True, False]]])
    results = {}
    for how in ("global", "image"):
        metric = build(accumulation=how).metric()
        metric.update(prediction, target, valid)
        results[how] = metric.compute()["RMSE"]
    assert results["global"] == pytest.approx(math.sqrt(11 / 3)) and results["image"] == pytest.approx(2.0)


def test_refusals():
    with pytest.raises(InputError, match=r"depth.silog_lambda: got 2.0; needs a number from 0 to 1"):
        build(silog_lambda=2.0)
    with pytest.raises(InputError, match=r"depth.max_depth: got 0.0"):
        build(max_depth=0.0)
