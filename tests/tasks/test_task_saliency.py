"""Saliency: the balanced loss, and that everything salient is the best constant."""

import math

import pytest
import torch

from polyptych.errors import InputError
from polyptych.tasks.saliency import Saliency
from polyptych.types import LabelInfo


def build(**options):
    return Saliency.Config(**options).build(labels=LabelInfo())


def test_the_weight_is_the_share_of_background_in_the_valid_batch():
    target = torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    valid = torch.tensor([[[True, True], [True, True]], [[False, False], [False, False]]])
    loss = build().full_size_loss(torch.zeros(2, 1, 2, 2), target, valid)
    # w = 3/4: one positive weighs 3/4, three negatives 1/4 each.
    assert float(loss.sum) == pytest.approx(1.5 * math.log(2)) and loss.count == 4


def test_parts_of_a_step_add_up_to_the_whole():
    """One image nearly all salient, one nearly not at all: halves that balanced themselves would give another loss."""
    make = torch.Generator().manual_seed(0)
    target = torch.zeros(2, 4, 5)
    target[0, :3], target[1, 0, 0] = 1, 1
    valid, raw = torch.rand(2, 4, 5, generator=make) > 0.2, torch.randn(2, 1, 2, 3, generator=make)
    task, halves = build(), (slice(0, 1), slice(1, 2))
    sums = sum(task.label_sums(target[half], valid[half]) for half in halves)
    parts = [task.loss_in_step(raw[half], target[half], valid[half], sums) for half in halves]
    whole = task.loss(raw, target, valid)
    assert float(sum(part.sum for part in parts)) == pytest.approx(float(whole.sum), rel=1e-6)
    assert sum(part.count for part in parts) == whole.count
    assert float(sum(task.loss(raw[half], target[half], valid[half]).sum for half in halves)) != pytest.approx(
        float(whole.sum), rel=1e-2)
    assert not len(build(weight=0.3).label_sums(target, valid))


def test_equals_softmax_over_two_channels():
    logits, target = torch.randn(2, 2, 4, 5), (torch.rand(2, 4, 5) > 0.6).float()
    valid = torch.rand(2, 4, 5) > 0.3
    w = (target[valid] == 0).float().mean()
    log = logits.log_softmax(1)
    expected = -(w * target * log[:, 1] + (1 - w) * (1 - target) * log[:, 0])[valid].sum()
    loss = build().loss(logits[:, 1:] - logits[:, :1], target, valid)
    assert torch.allclose(loss.sum, expected, rtol=1e-5)


def test_a_fixed_weight():
    loss = build(weight=0.9).full_size_loss(
        torch.zeros(1, 1, 1, 2), torch.tensor([[[1.0, 0.0]]]), torch.ones(1, 1, 2, dtype=torch.bool))
    assert float(loss.sum) == pytest.approx(math.log(2))
    with pytest.raises(InputError, match=r"saliency.weight: got 2.0; needs a number from 0 to 1"):
        build(weight=2.0)


def test_everything_salient_is_the_best_constant():
    task = build()
    target = (torch.rand(3, 8, 9, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    valid = torch.ones(3, 8, 9, dtype=torch.bool)

    def score(raw):
        metric = task.metric()
        metric.update(task.decode(raw).repeat(3, 1, 1), target, valid)
        return {name: value for name, value in metric.compute().items() if task.higher_is_better[name]}

    best = score(task.trivial().prediction((8, 9)))
    for constant in (-10.0, 0.0, 2.0):
        other = score(torch.full((1, 1, 8, 9), constant))
        assert all(best[name] >= other[name] for name in best)
    assert best["maxF"] > score(torch.full((1, 1, 8, 9), -10.0))["maxF"]
