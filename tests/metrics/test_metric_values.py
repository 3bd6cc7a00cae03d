"""Metrics against closed forms, torchmetrics and transcriptions of the formulas into plain numpy."""

import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_jaccard_index

from polyptych.metrics._base import histogram
from polyptych.metrics.angles import AngularError
from polyptych.metrics.boundaries import BoundaryF, dilate
from polyptych.metrics.confusion import ConfusionMatrix
from polyptych.metrics.depth import DepthError
from polyptych.metrics.keypoints import KeypointError
from polyptych.metrics.saliency import SaliencyF


def measure(metric, *values):
    metric.update(*values)
    return metric.compute()


def everywhere(x):
    return torch.ones(len(x), *x.shape[-2:], dtype=torch.bool)


def test_histogram_counts():
    index = torch.randint(7, (3, 50))
    assert torch.equal(histogram(index, 9), torch.bincount(index.flatten(), minlength=9))


# -- confusion -----------------------------------------------------------------------------------------------


def test_confusion_agrees_with_torchmetrics():
    prediction, target = torch.randint(5, (2, 20, 30)), torch.randint(5, (2, 20, 30))
    valid = torch.rand(2, 20, 30) > 0.3
    result = measure(ConfusionMatrix(5), prediction, target, valid)
    p, y = prediction[valid], target[valid]
    assert result == pytest.approx({
        "mIoU": 100 * float(multiclass_jaccard_index(p, y, 5)),
        "pixel_accuracy": 100 * float(multiclass_accuracy(p, y, 5, average="micro")),
        "mean_accuracy": 100 * float(multiclass_accuracy(p, y, 5, average="macro"))}, rel=1e-5)


PREDICTION = torch.tensor([[[0, 0, 1], [1, 1, 0]]])
TARGET = torch.tensor([[[0, 0, 1], [0, 1, 2]]])  # IoU 1/2, 2/3, 0; class 3 is nowhere


@pytest.mark.parametrize(("options", "expected"), [
    ({}, (1 / 2 + 2 / 3 + 0) / 3),
    ({"absent": "zero"}, (1 / 2 + 2 / 3) / 4),
    ({"absent": "nan"}, math.nan),
    ({"require_tp": True}, (1 / 2 + 2 / 3) / 2),
])
def test_absent_classes(options, expected):
    metric = ConfusionMatrix(4, ("a", "b", "c", "d"), **options)
    result = measure(metric, PREDICTION, TARGET, everywhere(TARGET))
    assert result == pytest.approx({"mIoU": 100 * expected, "pixel_accuracy": 100 * 4 / 6,
                                    "mean_accuracy": 100 * (2 / 3 + 1 + 0) / 3}, nan_ok=True)
    assert metric.breakdown() == pytest.approx({"a": 50, "b": 200 / 3, "c": 0, "d": math.nan}, nan_ok=True)


def test_ids_outside_never_wrap():
    target = torch.tensor([[[0, 1, 4, 255], [-1, 9999, 1, 0]]])
    prediction = torch.tensor([[[0, 1, 0, 0], [0, 1, -1, 17]]])
    metric = ConfusionMatrix(4)
    result = measure(metric, prediction, target, everywhere(target))
    assert int(metric.sums["confusion"].sum()) == 4  # two of them predicted out of range
    assert result["pixel_accuracy"] == 50 and result["mIoU"] == 50


# -- depth ---------------------------------------------------------------------------------------------------


def test_depth_agrees_with_numpy():
    make = torch.Generator().manual_seed(0)
    prediction, target = (torch.rand(2, 5, 6, generator=make) * 9 + 0.2 for _ in range(2))
    valid = torch.rand(2, 5, 6, generator=make) > 0.3
    p, y = (x[valid].numpy().astype(np.float64) for x in (prediction, target))
    worst = np.maximum(p / y, y / p)
    assert measure(DepthError(), prediction, target, valid) == pytest.approx({
        "RMSE": np.sqrt(((p - y) ** 2).mean()), "abs": np.abs(p - y).mean(),
        "rel": (np.abs(p - y) / y).mean(), "sq_rel": ((p - y) ** 2 / y).mean(),
        "log_RMSE": np.sqrt(((np.log(p) - np.log(y)) ** 2).mean()),
        "log10": np.abs(np.log10(p) - np.log10(y)).mean(),
        **{f"delta{k}": 100 * (worst < 1.25**k).mean() for k in (1, 2, 3)}}, rel=1e-12)


def test_depth_limits_are_strict_and_zero_predictions_are_finite():
    target = torch.full((1, 1, 4), 4.0, dtype=torch.float64)
    prediction = torch.tensor([[[5.0, 4.999, 4.0, 0.0]]], dtype=torch.float64)
    result = measure(DepthError(), prediction, target, everywhere(target))
    assert result["delta1"] == 50 and result["delta2"] == 75  # 5 / 4 is not below 1.25
    assert math.isfinite(result["log_RMSE"]) and result["RMSE"] > 2


def test_a_prediction_that_is_not_positive_counts_alike_in_every_number():
    """As in ASTMT's and the survey's meters, which raise it to 1e-9 m before anything is measured."""
    target = torch.full((1, 1, 2), 4.0, dtype=torch.float64)
    for lowest in (0.0, -3.0):
        result = measure(DepthError(), torch.full_like(target, lowest), target, everywhere(target))
        assert result["RMSE"] == result["abs"] == 4 - 1e-9 and result["rel"] == pytest.approx(1)
        assert result["log_RMSE"] == pytest.approx(math.log(4e9))


# -- angles --------------------------------------------------------------------------------------------------


def turned(degrees):
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    vectors = torch.stack([radians.sin(), torch.zeros_like(radians), -radians.cos()])
    return vectors.view(1, 3, 1, -1)


def test_angles_of_known_turns():
    angles = [0.0, 0.001, 11.2, 11.3, 22.0, 25.0, 29.9, 90.0, 180.0]
    prediction = turned(angles)
    target = turned([0.0] * len(angles)) * 1.3  # neither side needs unit length
    result = measure(AngularError(), prediction, target, everywhere(prediction))
    assert result == pytest.approx({
        "mean": np.mean(angles), "median": 22.0, "RMSE": np.sqrt(np.mean(np.square(angles))),
        "within_11.25": 300 / 9, "within_22.5": 500 / 9, "within_30": 700 / 9}, abs=6e-4)


@pytest.mark.parametrize("count", [1, 2, 99, 100])
def test_median_is_exact_to_half_a_bin(count):
    prediction, target = torch.randn(2, 1, 3, 1, count, dtype=torch.float64)
    metric = AngularError()
    result = measure(metric, prediction, target, everywhere(prediction))
    cosine = torch.cosine_similarity(prediction, target, dim=1).clamp(-1, 1)
    angles = cosine.acos().rad2deg().numpy().ravel()
    assert result["median"] == pytest.approx(np.median(angles), abs=5.1e-4)
    assert result["mean"] == pytest.approx(angles.mean(), rel=1e-9)


def test_a_dead_prediction_is_not_perfect():
    prediction = torch.zeros(1, 3, 2, 2)
    target = turned([0.0, 10.0, 20.0, 30.0]).view(1, 3, 2, 2)
    assert measure(AngularError(), prediction, target, everywhere(prediction))["mean"] == pytest.approx(90)


# -- boundaries ----------------------------------------------------------------------------------------------


def test_dilation_is_a_square():
    mask = torch.rand(2, 9, 11) > 0.9
    y, x = torch.meshgrid(torch.arange(9), torch.arange(11), indexing="ij")
    for radius in (0, 1, 3, 20):
        for image, wide in zip(mask, dilate(mask, radius), strict=True):
            points = image.nonzero()
            near = torch.zeros(9, 11, dtype=torch.bool)
            for r, c in points:
                near |= ((y - r).abs() <= radius) & ((x - c).abs() <= radius)
            assert torch.equal(wide, near)


def test_boundary_tolerance_is_a_fraction_of_the_diagonal():
    prediction, target = torch.zeros(1, 30, 40), torch.zeros(1, 30, 40)  # diagonal 50
    target[0, :, 20] = 1
    prediction[0, :, 22] = 0.9
    valid = everywhere(target)
    assert measure(BoundaryF(tolerance=0.04), prediction, target, valid)["F"] == 100
    assert measure(BoundaryF(tolerance=0.039), prediction, target, valid)["F"] == 0


def test_boundary_f_in_closed_form():
    prediction, target = torch.zeros(1, 9, 9), torch.zeros(1, 9, 9)
    prediction[0, 0, :4] = 1  # 3 of 4 predicted pixels are right
    target[0, 0, 1:7] = 1  # 3 of 6 true pixels are found
    result = measure(BoundaryF(tolerance=0.0), prediction, target, everywhere(target))
    assert result == pytest.approx({"F": 60, "precision": 75, "recall": 50})
    nothing = measure(BoundaryF(), torch.zeros(1, 9, 9), target, everywhere(target))
    assert nothing["F"] == 0 and math.isnan(nothing["precision"]) and nothing["recall"] == 0


# -- saliency ------------------------------------------------------------------------------------------------


def saliency_by_hand(p, y, valid, double=False):
    """All measures pixel by pixel in numpy, after the facts in protocols 4.7."""
    p, y = p.numpy(), y.numpy() > 0.5
    valid = valid.numpy()
    twice = (1 / (1 + np.exp(-p))).astype(np.float32) if double else p
    best_f = 0.0
    for t in np.arange(1, 20) / 20:
        positive = (twice >= np.float32(t)) & valid
        tp = (positive & y).sum()
        if tp:
            precision, recall = tp / positive.sum(), tp / (y & valid).sum()
            best_f = max(best_f, 1.3 * precision * recall / (0.3 * precision + recall))
    best_iou = best_f1 = 0.0
    for t in np.arange(4, 19) / 20:
        ious, precisions, recalls = [], [], []
        for image in range(len(p)):
            if valid[image].any():
                a, b = (p[image] > np.float32(t)) & valid[image], y[image] & valid[image]
                ious.append((a & b).sum() / (a | b).sum() if (a | b).any() else 1.0)
                precisions.append((a & b).sum() / (a.sum() + 1e-12))
                recalls.append((a & b).sum() / (b.sum() + 1e-12))
        best_iou = max(best_iou, np.mean(ious))
        precision, recall = np.mean(precisions), np.mean(recalls)
        best_f1 = max(best_f1, 2 * precision * recall / (precision + recall))
    return {"maxF": 100 * best_f, "mIoU_per_image": 100 * best_iou, "maxF_beta1_per_image": 100 * best_f1,
            **detection_by_hand(p, y, valid)}


def detection_by_hand(p, y, valid):
    """The measures of salient object detection, image by image and threshold by threshold."""
    labelled = [k for k in range(len(p)) if valid[k].any()]
    precisions, recalls = np.zeros((2, len(labelled), 256))
    for row, k in enumerate(labelled):
        saliency, truth = p[k][valid[k]].astype(np.float64), y[k][valid[k]]
        for level in range(256):
            positive = 255 * saliency + 1e-6 * saliency.max() >= level * saliency.max()
            precisions[row, level] = (positive & truth).sum() / max(positive.sum(), 1)
            recalls[row, level] = (positive & truth).sum() / max(truth.sum(), 1)
    precision, recall = precisions.mean(0), recalls.mean(0)
    mean_errors = [np.abs(p[k][valid[k]] - y[k][valid[k]]).mean() for k in labelled]
    return {"maxF_SOD": 100 * (1.3 * precision * recall / (0.3 * precision + recall)).max(),
            "MAE": np.mean(mean_errors)}


@pytest.mark.parametrize("double", [False, True])
def test_saliency_agrees_with_numpy(double):
    make = torch.Generator().manual_seed(3)
    y = (torch.rand(4, 8, 9, generator=make) > 0.6).float()
    p = 0.4 * y + 0.6 * torch.rand(4, 8, 9, generator=make)
    p = (20 * p).round() / 20  # many ties with thresholds
    valid = torch.rand(4, 8, 9, generator=make) > 0.2
    valid[1], y[2] = False, 0
    assert measure(SaliencyF(double), p, y, valid) == pytest.approx(saliency_by_hand(p, y, valid, double))


def test_saliency_thresholds_are_inclusive_for_f_and_exclusive_for_iou():
    p, y = torch.tensor([[[0.95, 0.0]]]), torch.tensor([[[1.0, 0.0]]])
    assert measure(SaliencyF(), p, y, everywhere(y)) == pytest.approx(
        {**dict.fromkeys(SaliencyF.names, 100), "MAE": 0.025})
    barely = torch.tensor([[[0.2, 0.05]]])  # 0.2 reaches 0.2 but does not exceed it
    assert measure(SaliencyF(), barely, y, everywhere(y)) == pytest.approx({
        "maxF": 100, "mIoU_per_image": 0, "maxF_beta1_per_image": 0, "maxF_SOD": 100, "MAE": (0.8 + 0.05) / 2})


def test_the_f_measures_of_saliency_differ():
    """A faint map of one object counts as much as a bright one only where maps are scaled and images averaged."""
    y = torch.tensor([[[1.0, 0, 0, 0]], [[1.0, 1, 1, 0]]])
    p = torch.tensor([[[0.04, 0, 0, 0]], [[1.0, 1, 1, 0]]])
    result = measure(SaliencyF(), p, y, everywhere(y))
    assert result["maxF_SOD"] == 100 and result["maxF"] == pytest.approx(100 * 1.3 * 0.75 / (0.3 + 0.75))


@pytest.mark.parametrize(("threshold", "probability"), [
    (0.55, 0.2007), (0.6, 0.4055), (0.65, 0.6190), (0.7, 0.8473)])
def test_the_double_sigmoid_shifts_the_thresholds(threshold, probability):
    index = round(20 * threshold) - 1
    for offset, counted in ((-1e-4, 0), (1e-4, 1)):
        metric = SaliencyF(double_sigmoid=True)
        one = torch.ones(1, 1, 1)
        metric.update(one * (probability + offset), one, one.bool())
        predicted = metric.sums["predicted"]
        assert predicted[index] == counted and predicted[:10].all() and not predicted[14:].any()


# -- keypoints -----------------------------------------------------------------------------------------------


def test_keypoint_error_in_closed_form():
    heat = torch.zeros(1, 3, 30, 40)  # diagonal 50
    heat[0, 0, 10, 10] = heat[0, 1, 5, 5] = heat[0, 2, 29, 39] = 1
    target = torch.tensor([[[[13.0, 14.0, 1], [5.0, 7.0, 1], [0, 0, 0]],
                            [[30.0, 20.0, 1], [5.0, 25.0, 1], [0, 0, 0]]]])
    result = measure(KeypointError(), heat, target, everywhere(heat))
    assert result == pytest.approx({"error": (10 + 4) / 2, "PCK": 50})


def test_keypoint_peaks_ignore_invalid_pixels():
    heat = torch.zeros(1, 1, 4, 4)
    heat[0, 0, 0, 0], heat[0, 0, 2, 1] = 9, 1
    valid = everywhere(heat)
    valid[0, 0] = False
    assert measure(KeypointError(), heat, torch.tensor([[[[1.0, 2.0, 1]]]]), valid)["error"] == 0


def test_images_without_persons_do_not_count():
    heat = torch.zeros(2, 3, 4, 4)
    result = measure(KeypointError(), heat, torch.zeros(2, 0, 3, 3), everywhere(heat))
    assert all(math.isnan(value) for value in result.values())
