"""Global numbers do not depend on batches and processes; those averaged over images or batches say so and do."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassJaccardIndex

from polyptych.errors import InputError
from polyptych.metrics._accumulation import metric_name, number_name
from polyptych.metrics._base import Averaged, Metric
from polyptych.metrics.angles import AngularError
from polyptych.metrics.confusion import ConfusionMatrix
from polyptych.metrics.depth import DepthError
from polyptych.tasks.semseg import SemanticSegmentation
from polyptych.types import LabelInfo

IMAGES, SIZE, CLASSES = 7, (6, 8), 4
CUTS = st.sets(st.integers(1, IMAGES - 1))  # where the stream of images is cut into batches
SEEDS = st.integers(0, 2**32 - 1)


def spread(make, values, cuts, processes: int = 1) -> Metric:
    """Batches dealt out to processes, which add up what they have seen."""
    parts = [make() for _ in range(processes)]
    edges = [0, *sorted(cuts), IMAGES]
    for index, (start, stop) in enumerate(pairwise(edges)):
        parts[index % processes].update(*(value[start:stop] for value in values))
    for other in parts[1:]:
        parts[0].merge(other)
    return parts[0]


def random(seed: int):
    return torch.Generator().manual_seed(seed)


def masks(make) -> torch.Tensor:
    valid = torch.rand(IMAGES, *SIZE, generator=make) > 0.4
    valid[3] = False
    return valid


@settings(max_examples=40, deadline=None)
@given(SEEDS, CUTS, st.integers(1, 3))
def test_miou_is_that_of_torchmetrics_however_it_is_cut(seed, cuts, processes) -> None:
    make = random(seed)
    p, y = (torch.randint(CLASSES, (IMAGES, *SIZE), generator=make) for _ in range(2))
    valid = masks(make)
    found = spread(lambda: ConfusionMatrix(CLASSES), (p, y, valid), cuts, processes).compute()
    theirs = MulticlassJaccardIndex(CLASSES, average="macro", ignore_index=255)
    theirs.update(p, torch.where(valid, y, 255))
    assert found["mIoU"] == pytest.approx(100 * float(theirs.compute()), rel=1e-5)
    assert found["pixel_accuracy"] == pytest.approx(100 * float((p == y)[valid].double().mean()), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(SEEDS, CUTS, st.integers(1, 3), st.integers(-300, 300))
def test_ids_outside_change_nothing(seed, cuts, processes, outside) -> None:
    if 0 <= outside < CLASSES:
        outside = CLASSES
    make = random(seed)
    p, y = (torch.randint(CLASSES, (IMAGES, *SIZE), generator=make) for _ in range(2))
    valid = masks(make)
    wild = torch.where(torch.rand(IMAGES, *SIZE, generator=make) < 0.3, outside, y)
    found = spread(lambda: ConfusionMatrix(CLASSES), (p, wild, valid), cuts, processes)
    kept = spread(lambda: ConfusionMatrix(CLASSES), (p, y, valid & (wild == y)), (), 1)
    assert torch.equal(found.sums["confusion"], kept.sums["confusion"])


@settings(max_examples=30, deadline=None)
@given(SEEDS, CUTS, st.integers(1, 3))
def test_depth_and_angles_are_those_of_a_loop(seed, cuts, processes) -> None:
    make = random(seed)
    p, y = (torch.rand(IMAGES, *SIZE, generator=make) * 9 + 0.1 for _ in range(2))
    n, m = (torch.randn(IMAGES, 3, *SIZE, generator=make) for _ in range(2))
    valid = masks(make)
    depth = spread(DepthError, (p, y, valid), cuts, processes).compute()
    angle = spread(AngularError, (n, m, valid), cuts, processes).compute()
    squared = relative = within = 0.0
    angles = []
    for i, r, c in valid.nonzero().tolist():
        a, b = float(p[i, r, c]), float(y[i, r, c])
        squared, relative = squared + (a - b) ** 2, relative + abs(a - b) / b
        within += max(a / b, b / a) < 1.25
        u, v = n[i, :, r, c].double().numpy(), m[i, :, r, c].double().numpy()
        angles.append(math.degrees(math.acos(np.clip(u @ v / np.linalg.norm(u) / np.linalg.norm(v), -1, 1))))
    count = len(angles)
    assert depth["RMSE"] == pytest.approx(math.sqrt(squared / count), rel=1e-9)
    assert depth["rel"] == pytest.approx(relative / count, rel=1e-9)
    assert depth["delta1"] == pytest.approx(100 * within / count, rel=1e-9)
    assert angle["mean"] == pytest.approx(np.mean(angles), rel=1e-6)
    assert angle["median"] == pytest.approx(np.median(angles), abs=1.1e-3)
    assert angle["RMSE"] == pytest.approx(np.sqrt(np.mean(np.square(angles))), rel=1e-6)
    assert angle["within_30"] == pytest.approx(100 * np.mean(np.array(angles) < 30), rel=1e-9)


def depths():
    y = torch.full((IMAGES, *SIZE), 2.0)
    p = y + torch.arange(IMAGES)[:, None, None]  # image k is off by k meters
    return p, y, torch.ones(IMAGES, *SIZE, dtype=torch.bool)


@pytest.mark.parametrize(("over", "cuts", "expected"), [
    ("image", (), 3.0), ("image", (2, 4), 3.0),
    ("batch", (3, 6), (math.sqrt(5 / 3) + math.sqrt(50 / 3) + 6) / 3),  # 0 1 2, 3 4 5 and 6
    ("batch_weighted", (3, 6), (3 * math.sqrt(5 / 3) + 3 * math.sqrt(50 / 3) + 6) / 7),
    ("batch", (), math.sqrt(13)), ("batch_weighted", (), math.sqrt(13)),
])
def test_averages_in_closed_form(over, cuts, expected) -> None:
    found = spread(lambda: Averaged(DepthError, over), depths(), cuts)
    assert found.compute()["RMSE"] == pytest.approx(expected, rel=1e-12) and found.accumulation == over


def test_only_means_over_batches_change_with_the_batch_size() -> None:
    def rmse(over, size):
        return spread(lambda: Averaged(DepthError, over), depths(), range(size, IMAGES, size)).compute()["RMSE"]

    assert rmse("batch", 2) != pytest.approx(rmse("batch", 3), abs=1e-3)
    assert rmse("batch_weighted", 2) != pytest.approx(rmse("batch_weighted", 3), abs=1e-3)
    assert rmse("image", 2) == pytest.approx(rmse("image", 3), rel=1e-12)
    one, three = (spread(DepthError, depths(), range(size, IMAGES, size)).compute() for size in (1, 3))
    assert one == pytest.approx(three, rel=1e-12)


def test_an_image_without_labels_has_no_weight() -> None:
    p, y, valid = depths()
    valid[5:] = False
    for over, cuts in (("image", ()), ("batch", range(1, IMAGES))):
        assert spread(lambda over=over: Averaged(DepthError, over), (p, y, valid), cuts).compute()["abs"] == 2.0


def test_nothing_seen_has_the_names_and_no_values() -> None:
    for metric, values in ((Averaged(DepthError), torch.ones(1, 2, 2)),
                           (Averaged(lambda: ConfusionMatrix(3), "batch"), torch.ones(1, 2, 2).long())):
        empty = metric.compute()
        metric.update(values, values, torch.zeros(1, 2, 2, dtype=torch.bool))
        assert empty.keys() == metric.compute().keys() and all(math.isnan(value) for value in metric.compute().values())


def test_the_union_of_2019_counts_predictions_without_a_label() -> None:
    prediction = torch.tensor([[[0, 0, 1, 1]]])
    target = torch.tensor([[[0, 0, 1, 0]]])
    valid = torch.tensor([[[True, True, True, False]]])
    for union_unlabeled, expected in ((False, 100.0), (True, 75.0)):  # class 1: 1/1 or 1/2
        metric = ConfusionMatrix(3, union_unlabeled=union_unlabeled)
        metric.update(prediction, target, valid)
        assert metric.compute()["mIoU"] == expected and metric.compute()["pixel_accuracy"] == 100
        assert metric.options["union_unlabeled"] is union_unlabeled


def test_means_over_images_refuse_what_would_drop_most_images() -> None:
    labels = LabelInfo(classes=("a", "b"))
    with pytest.raises(InputError, match=r"semseg.absent: got nan with accumulation image; needs skip or zero"):
        SemanticSegmentation.Config(absent="nan", accumulation="image").build(labels=labels)


def test_names_say_the_accumulation() -> None:
    assert number_name("RMSE", "global") == "RMSE" and number_name("RMSE", "batch") == "RMSE_per_batch"
    for how in ("global", "image", "batch", "batch_weighted"):
        assert metric_name(number_name("mIoU", how), how) == "mIoU"
    assert metric_name("RMSE", "") == "RMSE"  # not recorded
