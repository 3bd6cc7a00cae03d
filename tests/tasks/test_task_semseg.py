"""Semantic segmentation and parts: cross entropy, options, mirrored classes, majority class."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from polyptych.data.geometry import Geometry
from polyptych.errors import InputError
from polyptych.tasks.parts import PartSegmentation
from polyptych.tasks.semseg import SemanticSegmentation
from polyptych.types import LabelInfo

LABELS = LabelInfo(classes=("floor", "left arm", "right arm"), mirror=((1, 2),))
EVERYWHERE = torch.ones(1, 2, 2, dtype=torch.bool)


def build(labels=LABELS, **options):
    return SemanticSegmentation.Config(**options).build(labels=labels)


def test_cross_entropy_in_closed_form():
    prediction = torch.zeros(1, 3, 2, 2)
    prediction[0, 0, 0, 0] = math.log(2)  # probabilities 1/2, 1/4, 1/4
    target = torch.tensor([[[0, 1], [2, 9999]]])
    valid = torch.tensor([[[True, True], [True, False]]])
    loss = build().full_size_loss(prediction, target, valid)
    assert float(loss.sum) == pytest.approx(math.log(2) + 2 * math.log(3)) and loss.count == 3


def test_agrees_with_the_mean_of_the_framework():
    prediction, target = torch.randn(2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    valid = torch.rand(2, 4, 5) > 0.3
    masked = torch.where(valid, target, 255)
    for smoothing in (0.0, 0.1):
        expected = F.cross_entropy(prediction, masked, ignore_index=255, label_smoothing=smoothing)
        task = build(label_smoothing=smoothing)
        assert torch.allclose(task.loss(prediction, target, valid).mean(), expected)


def test_class_weights_multiply_pixels_and_not_the_count():
    prediction, target = torch.zeros(1, 3, 2, 2), torch.tensor([[[0, 1], [2, 2]]])
    loss = build(class_weights=(1.0, 2.0, 4.0)).full_size_loss(prediction, target, EVERYWHERE)
    assert float(loss.sum) == pytest.approx(11 * math.log(3), rel=1e-6) and loss.count == 4


def test_mirror_swaps_left_and_right():
    task = build()
    target = torch.tensor([[0, 1, 1], [2, 0, 255]])
    valid = target != 255
    mirror = Geometry((2, 3), (2, 3), (0, 0, 2, 3), mirror=True)
    moved, kept = task.move(target, valid, mirror)
    assert moved.tolist() == [[2, 2, 0], [255, 0, 1]]
    assert kept.tolist() == [[True, True, True], [False, True, True]]
    without_pairs = build(LabelInfo(classes=("a", "b", "c")))
    assert without_pairs.move(target, valid, mirror)[0].tolist() == [[1, 1, 0], [255, 0, 2]]


def test_fault_names_the_id_the_number_and_the_range():
    target = torch.tensor([[0, 57], [57, -1]])
    valid = torch.tensor([[True, True], [True, False]])
    assert build().fault(target, valid) == "class id 57 (2 such pixels; ids run from 0 to 2)"
    assert build().fault(target, torch.tensor([[True, False], [False, False]])) is None
    assert "class id -1 (1 such" in build().fault(target, torch.tensor([[True, False], [False, True]]))


def test_majority_class_beats_the_other_constants():
    task = build()
    target = torch.tensor([[2, 2, 2], [0, 1, 2]])
    valid = torch.ones(2, 3, dtype=torch.bool)
    trivial = task.trivial()
    trivial.update(target, valid)
    trivial.update(torch.full((2, 3), 9999), ~valid)
    decoded = task.decode(trivial.prediction((2, 3)))
    assert (decoded == 2).all()
    scores, losses = [], []
    for constant in range(3):
        metric = task.metric()
        metric.update(torch.full((1, 2, 3), constant), target[None], valid[None])
        scores.append(metric.compute()["mIoU"])
    assert max(scores) == scores[2] and scores[2] > max(scores[:2])
    for logits in (trivial.prediction((2, 3)), torch.zeros(1, 3, 2, 3)):
        losses.append(float(task.loss(logits, target[None], valid[None]).mean()))
    assert losses[0] < losses[1]


def test_colors_come_from_the_dataset_if_it_has_any():
    colors = ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    task = build(LabelInfo(classes=("a", "b", "c"), colors=colors))
    image = np.zeros((2, 2, 3), np.uint8)
    picture = task.paint(torch.tensor([[0, 1], [2, 3]]), image)
    assert picture.tolist() == [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [128, 128, 128]]]


def test_accumulation_over_images_is_another_number():
    target = torch.tensor([[[0, 0], [0, 1]], [[1, 1], [1, 1]]])
    prediction = torch.tensor([[[0, 0], [0, 0]], [[1, 1], [1, 1]]])
    valid = torch.ones_like(target, dtype=torch.bool)
    results = {}
    for how in ("global", "image", "batch"):
        metric = build(accumulation=how).metric()
        metric.update(prediction, target, valid)
        results[how] = metric.compute()["mIoU"]
    assert results["global"] == results["batch"] == pytest.approx(100 * (3 / 4 + 4 / 5) / 2)
    assert results["image"] == pytest.approx(100 * (3 / 8 + 1) / 2)


def test_refusals_say_what_to_do():
    with pytest.raises(InputError, match=r"labels of task 'semseg': got no classes; needs the name of every"):
        build(LabelInfo())
    with pytest.raises(InputError, match=r"semseg.class_weights: got 2 weights; needs 3, one per class"):
        build(class_weights=(1.0, 2.0))
    with pytest.raises(InputError, match=r"semseg.label_smoothing: got 1.5"):
        build(label_smoothing=1.5)


def test_parts_are_class_maps_of_their_own():
    task = PartSegmentation.Config().build(labels=LABELS)
    assert task.config.name == "parts" and task.standard_weight == 2.0 and task.channels == 3
    with pytest.raises(InputError, match="labels of task 'parts'"):
        PartSegmentation.Config().build(labels=LabelInfo())
