"""Classification from maps: pooling, masks, accuracy, pictures; the score of the decathlon."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from polyptych.data.geometry import Geometry
from polyptych.errors import InputError
from polyptych.metrics.accuracy import Accuracy
from polyptych.metrics.decathlon import LARGEST_ERROR, decathlon_score
from polyptych.tasks.classification import Classification
from polyptych.types import LabelInfo

LABELS = LabelInfo(classes=("ahead", "left", "right"), mirror=((1, 2),))
VALID = torch.ones(2, 6, 8, dtype=torch.bool)


def build(labels=LABELS, **options):
    return Classification.Config(**options).build(labels=labels)


def test_the_loss_is_the_cross_entropy_of_the_pooled_map():
    prediction, target = torch.randn(2, 3, 6, 8), torch.tensor([0, 2])
    for smoothing in (0.0, 0.1):
        expected = F.cross_entropy(prediction.mean((2, 3)), target, label_smoothing=smoothing)
        task = build(label_smoothing=smoothing)
        loss = task.loss(prediction, target, VALID)
        assert torch.allclose(loss.mean(), expected) and loss.count == 2 * 48
        coarse = F.avg_pool2d(prediction, 2)
        assert torch.allclose(task.loss(coarse, target, VALID).mean(), expected)


def test_pooling_runs_over_what_the_image_shows():
    prediction, target, valid = torch.randn(2, 3, 6, 8), torch.tensor([1, 2]), VALID.clone()
    valid[0, :, 4:] = False
    valid[1] = False  # no label: neither counted nor looked at
    loss = build().loss(prediction, torch.tensor([1, 999]), valid)
    expected = F.cross_entropy(prediction[:1, :, :, :4].mean((2, 3)), target[:1])
    assert torch.allclose(loss.mean(), expected) and loss.count == 24


def test_padding_in_evaluation_changes_no_rank():
    prediction = torch.randn(4, 3, 6, 8)
    padded = F.pad(prediction, (0, 5, 0, 3))
    task = build()
    assert torch.equal(task.decode(prediction).argsort(1), task.decode(padded).argsort(1))


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 8))
def test_accuracy_is_the_rank_of_the_label_and_adds_up(seed, images, classes):
    g = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 4, (images, classes), generator=g).float()
    target = torch.randint(-1, classes + 1, (images,), generator=g)
    valid = torch.rand(images, 2, 2, generator=g) > 0.7
    whole, parts = Accuracy(), Accuracy()
    whole.update(scores, target, valid)
    for i in range(images):
        parts.update(scores[i:i + 1], target[i:i + 1], valid[i:i + 1])
    counted = [i for i in range(images) if valid[i].any() and 0 <= target[i] < classes]
    order = scores.argsort(dim=1, descending=True, stable=True)  # of equal scores the lower id first
    ranks = [order[i].tolist().index(int(target[i])) for i in counted]
    expected = {name: 100 * np.mean([rank < k for rank in ranks]) if ranks else math.nan
                for name, k in (("top1", 1), ("top5", 5))}
    assert whole.compute() == pytest.approx(expected, nan_ok=True)
    assert parts.compute() == pytest.approx(expected, nan_ok=True)


def test_the_most_frequent_class_is_the_baseline():
    task = build()
    trivial = task.trivial()
    for label, valid in ((2, True), (2, True), (1, True), (0, False)):
        trivial.update(torch.tensor(label), torch.full((2, 2), valid))
    decoded = task.decode(trivial.prediction((4, 4)))
    assert decoded.argsort(1, descending=True).tolist() == [[2, 1, 0]]
    assert decoded.exp()[0, 2] == pytest.approx(2 / 3.5)  # of a class never seen half an image was


def test_a_mirror_swaps_left_and_right():
    task, valid = build(), VALID[0]
    mirror = Geometry((6, 8), (6, 8), (0, 0, 6, 8), mirror=True)
    assert [int(task.move(torch.tensor(i), valid, mirror)[0]) for i in range(3)] == [0, 2, 1]
    outside = task.move(torch.tensor(1), valid, Geometry((6, 8), (6, 8), (0, 4, 6, 8)))[1]
    assert outside[:, :4].all() and not outside[:, 4:].any()


def test_pictures_show_classes_in_the_order_of_their_probability():
    labels = LabelInfo(classes=("a", "b", "c"), colors=((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    task, image = build(labels), np.full((100, 200, 3), 90, np.uint8)
    picture = task.paint(torch.tensor([0.2, 0.3, 0.5]).log(), image)
    assert [picture[2 + 20 * row, 80].tolist() for row in range(3)] == [[0, 0, 255], [45, 45, 45], [45, 45, 45]]
    assert [picture[2 + 20 * row, 35].tolist() for row in range(3)] == [[0, 0, 255], [0, 255, 0], [255, 0, 0]]
    truth = task.paint_target(torch.tensor(1), torch.ones(100, 200, dtype=torch.bool), image)
    assert truth[2, 190].tolist() == [0, 255, 0] and truth[50, 50].tolist() == [45, 45, 45]


@pytest.mark.parametrize(("target", "message"), [
    (torch.tensor(3), "class id 3"), (torch.tensor(-1), "class id -1"), (torch.tensor(1.0), "type torch.float32"),
    (torch.zeros(6, 8, dtype=torch.long), "shape (6, 8)")])
def test_faults(target, message):
    assert message in build().fault(target, VALID[0])


def test_refusals():
    with pytest.raises(InputError, match="no classes"):
        build(LabelInfo())
    with pytest.raises(InputError, match="label_smoothing: got 2"):
        build(label_smoothing=2.0)


ROWS = {  # accuracy in the order imagenet, aircraft, cifar, daimler, dtd, gtsrb, flowers, omniglot, svhn, ucf; score
    "from scratch": ("59.87 57.10 75.73 91.20 37.77 96.55 56.3 88.74 96.63 43.27", 1625),
    "fine-tuned": ("59.87 60.34 82.12 92.82 55.53 97.53 81.41 87.69 96.55 51.20", 2500),
    "residual adapters": ("59.67 61.87 81.20 93.88 57.13 97.57 81.67 89.62 96.13 50.12", 2621),
    "DAN": ("57.74 64.12 80.07 91.30 56.54 98.46 86.05 89.67 96.77 49.38", 2851),
    "MTAN": ("63.90 61.81 81.59 91.59 56.44 98.80 81.04 89.83 96.88 50.63", 2941),
}
ORDER = ("imagenet12", "aircraft", "cifar100", "daimlerpedcls", "dtd", "gtsrb", "vgg-flowers", "omniglot", "svhn",
         "ucf101")


@pytest.mark.parametrize("method", ROWS)
def test_the_decathlon_score_reproduces_published_rows(method):
    row, score = ROWS[method]
    assert decathlon_score(dict(zip(ORDER, map(float, row.split()), strict=True))) == pytest.approx(score, abs=2)


def test_bounds_of_the_decathlon_score():
    perfect = dict.fromkeys(ORDER, 100.0)
    assert decathlon_score(perfect) == pytest.approx(10000)
    assert decathlon_score(dict.fromkeys(ORDER, 0.0)) == 0  # worse than the limit is not worse than nothing
    assert decathlon_score({d: 100 * (1 - e / 2) for d, e in LARGEST_ERROR.items()}) == pytest.approx(2500)
    for wrong, message in (({"dtd": 101.0}, "got 101"), ({"mnist": 5.0}, "unknown domain"),
                           ({"dtd": math.nan}, "got nan")):
        with pytest.raises(InputError, match=message):
            decathlon_score(perfect | wrong)
    with pytest.raises(InputError, match="accuracy of 'svhn': got nothing"):
        decathlon_score({d: 1.0 for d in ORDER if d != "svhn"})
