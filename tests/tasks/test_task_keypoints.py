"""Keypoints: rendering, losses at any resolution, moving, drawing, the mean position."""

import math

import numpy as np
import pytest
import torch

from polyptych.data.geometry import Geometry
from polyptych.errors import InputError
from polyptych.metrics.keypoints import peaks
from polyptych.tasks.keypoints import Keypoints
from polyptych.types import LabelInfo

LABELS = LabelInfo(classes=("nose", "left ankle", "right ankle"), mirror=((1, 2),), skeleton=((0, 1), (0, 2)))
TARGET = torch.tensor([[[3.0, 2.0, 1], [10.0, 7.0, 1], [0.0, 0.0, 0]]])  # one person, the right ankle hidden
SIZE = (12, 16)
VALID = torch.ones(1, *SIZE, dtype=torch.bool)


def build(**options):
    return Keypoints.Config(**options).build(labels=LABELS)


@pytest.mark.parametrize("loss", ["softmax", "mse", "focal"])
def test_the_peak_of_a_rendered_label_is_the_keypoint(loss):
    heat = build(loss=loss).render(TARGET[None], VALID, SIZE)
    assert peaks(heat, VALID)[0, :2].tolist() == [[3, 2], [10, 7]]
    assert heat[0, 0, 2, 3] == 1 and heat[0, 2].max() == 0


def test_a_bump_is_a_gaussian_and_bumps_meet_in_their_maximum():
    two = torch.tensor([[[3.0, 2.5, 1]] * 3, [[9.0, 6.0, 1]] * 3])[None]
    task = build(sigma=0.1)
    heat = task.render(two, VALID, SIZE)[0, 0]
    y, x = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    variance = (0.1 * 20) ** 2  # the diagonal of 12 x 16 is 20
    bumps = [torch.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * variance)) for u, v in ((3, 2.5), (9, 6))]
    assert torch.allclose(heat, torch.maximum(*bumps), atol=1e-6)


def test_a_coarse_map_samples_the_same_bump():
    task = build(sigma=0.2)
    target = torch.tensor([[[5.0, 4.0, 1]] * 3])[None]
    fine = task.render(target, VALID, (36, 48))[0, 0]
    assert torch.allclose(task.render(target, VALID, SIZE)[0, 0], fine[1::3, 1::3], atol=1e-6)


@pytest.mark.parametrize("loss", ["softmax", "mse", "focal"])
def test_hidden_masked_outlying_and_padded_keypoints_leave_no_trace(loss):
    valid = VALID.clone()
    valid[0, :, 12:] = False
    target = torch.tensor([[[3.0, 2.0, 0], [13.0, 5.0, 1], [40.0, 5.0, 1]],
                           [[float("nan"), 2.0, 1], [-3.0, 5.0, 1], [5.0, float("inf"), 1]]])
    task = build(loss=loss)
    assert task.render(target[None], valid, SIZE).max() == 0
    assert task.collate([target, task.empty(SIZE)]).shape == (2, 2, 3, 3)


def test_focal_has_one_whole_hit_per_keypoint_at_every_resolution():
    target = torch.tensor([[[3.7, 2.2, 1], [15.4, 11.4, 1], [-0.4, -0.4, 1]]])[None]
    for size in ((12, 16), (6, 8), (5, 7), (1, 1)):
        heat = build(loss="focal").render(target, VALID, size)
        assert ((heat == 1).sum((2, 3)) == 1).all()


def test_mse_in_closed_form():
    task = build(loss="mse", sigma=0.1)
    raw = task.render(TARGET[None], VALID, SIZE).clone()
    assert task.loss(raw, TARGET[None], VALID).sum == 0
    raw[0, 1, 4, 4] += 3
    raw[0, 2, 5, 5] -= 1
    loss = task.loss(raw, TARGET[None], VALID)
    assert float(loss.sum) == pytest.approx((9 + 1) / 3, rel=1e-5) and loss.count == 12 * 16


def test_softmax_in_closed_form():
    """All places equally probable cost log(places) for each of the two types that are visible, of three."""
    task = build(loss="softmax")
    valid = VALID.clone()
    valid[0, :, 12:] = False
    places = 12 * 12
    loss = task.loss(torch.full((1, 3, *SIZE), 0.7), TARGET[None], valid)
    assert float(loss.sum) == pytest.approx(2 / 3 * places * math.log(places), rel=1e-5) and loss.count == places


def test_softmax_does_not_ask_for_what_is_not_shown():
    task = build(loss="softmax")
    raw = torch.randn(1, 3, *SIZE, requires_grad=True)
    task.loss(raw, TARGET[None], VALID).sum.backward()
    assert raw.grad[0, 2].abs().max() == 0 and raw.grad[0, 0].abs().max() > 0


def test_focal_in_closed_form():
    task = build(loss="focal", sigma=1e-3)  # a bump of a single pixel
    logit = math.log(1 / 3)  # p = 1/4
    raw = torch.full((1, 3, *SIZE), logit)
    hits, misses = 2, 3 * 12 * 16 - 2
    expected = hits * 0.75**2 * -math.log(0.25) + misses * 0.25**2 * -math.log(0.75)
    assert float(task.loss(raw, TARGET[None], VALID).sum) == pytest.approx(expected / 3, rel=1e-5)


def test_the_focal_penalty_fades_near_the_keypoint():
    task = build(loss="focal", sigma=0.1)
    raw = torch.zeros(1, 3, *SIZE, requires_grad=True)
    task.loss(raw, TARGET[None], VALID).sum.backward()
    gradient = raw.grad[0, 0, 2]
    assert gradient[3] < 0 < gradient[4] < gradient[6] < gradient[12]


@pytest.mark.parametrize("size", [(12, 16), (6, 8), (5, 7), (1, 1), (24, 32)])
def test_the_weights_of_coarse_cells_add_up_to_the_valid_pixels(size):
    # A constant error of 1 costs 1 per valid pixel at every resolution.
    task = build(loss="mse")
    target = task.collate([task.empty(SIZE)] * 2)
    valid = torch.rand(2, *SIZE) > 0.5
    valid[0] = False
    loss = task.loss(torch.ones(2, 3, *size), target, valid)
    assert loss.count == valid.sum() and float(loss.sum) == pytest.approx(int(valid.sum()), rel=1e-5)


def test_a_batch_is_the_sum_of_its_images():
    task = build()
    raw, valid = torch.randn(3, 3, 6, 8), torch.rand(3, *SIZE) > 0.3
    target = (torch.rand(3, 2, 3, 3) * torch.tensor([16, 12, 2.0])).floor()
    whole = task.loss(raw, target, valid)
    parts = sum(task.loss(raw[i:i + 1], target[i:i + 1], valid[i:i + 1]).sum for i in range(3))
    assert torch.allclose(whole.sum, parts)


def test_learning_the_heat_map_finds_the_keypoints():
    for loss in ("softmax", "mse", "focal"):
        task = build(loss=loss)
        raw = torch.zeros(1, 3, *SIZE, requires_grad=True)
        optimizer = torch.optim.Adam([raw], lr=0.3)
        for _ in range(40):
            optimizer.zero_grad()
            task.loss(raw, TARGET[None], VALID).mean().backward()
            optimizer.step()
        metric = task.metric()
        metric.update(task.decode(raw.detach()), TARGET[None], VALID)
        assert metric.compute() == {"error": 0.0, "PCK": 100.0}


def test_mirror_moves_points_and_swaps_left_and_right():
    mirror = Geometry(SIZE, SIZE, (0, 0, *SIZE), mirror=True)
    moved, _ = build().move(TARGET, VALID[0], mirror)
    assert moved.tolist() == [[[12, 2, 1], [0, 0, 0], [5, 7, 1]]]
    assert torch.equal(build().move(moved, VALID[0], mirror)[0], TARGET)


def test_moved_points_agree_with_moved_pixels():
    task = build(sigma=0.05)
    size = (60, 80)
    valid = torch.ones(size, dtype=torch.bool)
    target = torch.tensor([[[30.0, 20.0, 1], [50.0, 33.0, 1], [41.0, 28.0, 1]]])
    geometry = Geometry(size, (90, 100), (5, 4, 50, 60), angle=12.0, zoom=1.3)
    heat = task.render(target[None], valid[None], size)
    moved, kept = task.move(target, valid, geometry)
    expected = peaks(geometry.image(heat[0])[None], kept[None])[0]
    assert (moved[0, :, :2] - expected).abs().max() <= 1.5 and moved[0, :, 2].all()


def test_points_that_leave_the_frame_become_invisible():
    target = torch.tensor([[[3.0, 2.0, 1], [10.0, 7.0, 1], [float("nan"), 1.0, 0]]])
    moved, kept = build().move(target, VALID[0], Geometry(SIZE, SIZE, (0, 8, *SIZE)))
    assert moved.tolist() == [[[0, 0, 0], [2, 7, 1], [0, 0, 0]]]
    assert kept[:, :8].all() and not kept[:, 8:].any()
    edge = torch.tensor([[[7.6, -0.4, 1], [7.4, 5.0, 1], [15.4, 11.6, 1]]])  # pixels end half a pixel from the center
    assert build().move(edge, VALID[0], Geometry(SIZE, SIZE, (0, 8, *SIZE)))[0][0, :, 2].tolist() == [1, 0, 0]
    assert build().move(edge, VALID[0], Geometry(SIZE, (12, 8), (0, 0, 12, 8)))[0][0, :, 2].tolist() == [0, 1, 0]


def test_fault():
    task = build()
    assert task.fault(TARGET, VALID[0]) is None and task.fault(task.empty(SIZE), VALID[0]) is None
    assert task.fault(TARGET[0], VALID[0]) == "keypoints of shape (3, 3) (the shape is persons, 3, 3)"
    assert task.fault(TARGET * float("nan"), VALID[0]) == "a keypoint that is not finite"
    assert task.fault(TARGET * 2, VALID[0]) == "a visibility other than 0 and 1"


@pytest.mark.parametrize("loss", ["softmax", "mse", "focal"])
def test_the_mean_position_is_relative_to_the_size(loss):
    task = build(loss=loss)
    trivial = task.trivial()
    for x, y in ((1.0, 2.0), (5.0, 8.0)):
        trivial.update(torch.tensor([[[x, y, 1], [0, 0, 0], [12.0, 9.0, 1]]]), VALID[0])
    heat = task.decode(trivial.prediction(SIZE))
    # The type that was never seen is in the center, which lies between two pixels.
    expected = torch.tensor([[3, 5], [7.5, 5.5], [12, 9]])
    assert ((peaks(heat, VALID)[0] - expected).abs() <= torch.tensor([[0], [0.5], [0]])).all()
    large = task.decode(trivial.prediction((24, 32)))
    offset = peaks(large, torch.ones(1, 24, 32, dtype=torch.bool))[0] - (2 * expected + 0.5)
    assert offset.abs().max() <= 0.5


def test_pictures_show_dots_and_lines_where_the_keypoints_are():
    task = build()
    image = np.full((60, 80, 3), 100, np.uint8)
    target = torch.tensor([[[20.0, 10.0, 1], [60.0, 10.0, 1], [0, 0, 0]],
                           [[20.0, 50.0, 1], [0, 0, 0], [0, 0, 0]]])
    valid = torch.ones(60, 80, dtype=torch.bool)
    picture = task.paint_target(target, valid, image)
    assert (picture[10, 20] != 50).any() and (picture[50, 20] == picture[10, 20]).all()
    assert (picture[10, 40] == 255).all(), "the line between nose and left ankle"
    assert (picture[30, 40] == 50).all(), "the image, darkened"
    heat = task.render(target[None, :1], valid[None], (60, 80))[0]
    assert (task.paint(heat, image)[10, 20] == picture[10, 20]).all()
    assert (task.paint(heat * 0.05, image) == 50).all(), "peaks below the threshold are not shown"
    small = task.paint(task.render(target[None, :1], valid[None], (30, 40))[0], image)
    assert (small[10, 20] == picture[10, 20]).all(), "a coarse map is drawn in the scale of the image"


def test_refusals():
    with pytest.raises(InputError, match=r"labels of task 'keypoints': got no types"):
        Keypoints.Config().build(labels=LabelInfo())
    with pytest.raises(InputError, match=r"keypoints.sigma: got 2.0"):
        build(sigma=2.0)
