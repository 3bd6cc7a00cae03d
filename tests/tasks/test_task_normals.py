"""Normals: the three losses, turning with the image, the customary colors."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from polyptych.data.geometry import Geometry
from polyptych.tasks.normals import Normals
from polyptych.types import LabelInfo


def build(**options):
    return Normals.Config(**options).build(labels=LabelInfo())


def random_batch(seed=0):
    make = torch.Generator().manual_seed(seed)
    raw = torch.randn(2, 3, 4, 5, generator=make)
    target = F.normalize(torch.randn(2, 3, 4, 5, generator=make), dim=1)
    return raw, target, torch.rand(2, 4, 5, generator=make) > 0.3


def test_losses_in_closed_form():
    raw = torch.tensor([0.0, 0.0, -7.0]).view(1, 3, 1, 1).expand(1, 3, 1, 2)
    target = torch.tensor([[0.0, 0.0, -1.0], [0.6, 0.0, -0.8]]).T.view(1, 3, 1, 2)
    valid = torch.ones(1, 1, 2, dtype=torch.bool)
    for loss, expected in (("l1", 0.8 / 3), ("l1_pixel", 0.8), ("cosine", 0.2)):
        result = build(loss=loss).full_size_loss(raw, target, valid)
        assert float(result.sum) == pytest.approx(expected, rel=1e-6) and result.count == 2


def test_l1_per_pixel_is_three_times_l1():
    batch = random_batch()
    sums = [build(loss=loss).loss(*batch).sum for loss in ("l1", "l1_pixel")]
    assert torch.allclose(3 * sums[0], sums[1])


def test_l1_is_the_mean_over_valid_elements():
    raw, target, valid = random_batch()
    elements = (F.normalize(raw, dim=1) - target).abs()[valid[:, None].expand_as(raw)]
    assert torch.allclose(build().loss(raw, target, valid).mean(), elements.mean())


def test_a_zero_prediction_has_a_finite_gradient():
    for loss in ("l1", "cosine"):
        raw = torch.zeros(1, 3, 1, 1, requires_grad=True)
        target = torch.tensor([0.0, 0.6, -0.8]).view(1, 3, 1, 1)
        build(loss=loss).loss(raw, target, torch.ones(1, 1, 1, dtype=torch.bool)).sum.backward()
        assert raw.grad.isfinite().all()


def test_decoded_vectors_have_unit_length():
    decoded = build().decode(random_batch()[0] * 1e3)
    assert torch.allclose(decoded.norm(dim=1), torch.ones(2, 4, 5))


def test_mirror_negates_x_only():
    _, target, valid = random_batch()
    moved, _ = build().move(target[0], valid[0], Geometry((4, 5), (4, 5), (0, 0, 4, 5), mirror=True))
    assert torch.equal(moved, target[0].flip(-1) * torch.tensor([-1.0, 1.0, 1.0]).view(3, 1, 1))


def test_zoom_changes_no_direction():
    _, target, valid = random_batch()
    geometry = Geometry((4, 5), (8, 10), (0, 0, 4, 5), zoom=2.0)
    moved, _ = build().move(target[0], valid[0], geometry)
    assert torch.equal(moved, geometry.labels(target[0]))


def orthographic_normals(depth):
    """Normals toward the camera of the surface z = depth(x, y), x right, y down, z forward."""
    dy, dx = np.gradient(depth)
    vectors = np.stack([dx, dy, -np.ones_like(depth)])
    return vectors / np.linalg.norm(vectors, axis=0)


@pytest.mark.parametrize("angle", [15.0, -20.0, 90.0])
def test_rotation_agrees_with_a_rotated_surface(angle):
    # Move the surface as an image, derive its normals, and compare with the moved normals of the original.
    size = 61
    y, x = np.mgrid[:size, :size].astype(float)
    depth = 10 + 0.7 * x - 0.2 * y
    geometry = Geometry((size, size), (size, size), (0, 0, size, size), angle=angle)
    rotated = geometry.image(torch.tensor(depth, dtype=torch.float32)[None])[0].double().numpy()
    target = torch.tensor(orthographic_normals(depth), dtype=torch.float32)
    moved, _ = build().move(target, torch.ones(size, size, dtype=torch.bool), geometry)
    middle = slice(20, 41)
    expected = torch.tensor(orthographic_normals(rotated)[:, middle, middle], dtype=torch.float32)
    assert (moved[:, middle, middle] - expected).abs().max() < 1e-3
    assert (target[:, middle, middle] - expected).abs().max() > 0.05


def test_rotation_keeps_the_length_and_four_quarter_turns_cancel():
    _, target, valid = random_batch()
    square = target[0][:, :4, :4]
    quarter = Geometry((4, 4), (4, 4), (0, 0, 4, 4), angle=90.0)
    moved, kept = square, valid[0][:, :4]
    for _ in range(4):
        moved, kept = build().move(moved, kept, quarter)
        assert torch.allclose(moved.norm(dim=0), torch.ones(4, 4))
    assert torch.allclose(moved, square, atol=1e-6) and torch.equal(kept, valid[0][:, :4])


def test_customary_colors():
    wall, floor = torch.tensor([0.0, 0.0, -1.0]), torch.tensor([0.0, -1.0, 0.0])
    picture = build().paint(torch.stack([wall, floor], 1).view(3, 1, 2), np.zeros((1, 2, 3), np.uint8))
    assert picture.tolist() == [[[128, 128, 255], [128, 255, 128]]]


def test_fault():
    target = F.normalize(torch.randn(3, 2, 2), dim=0)
    valid = torch.ones(2, 2, dtype=torch.bool)
    assert build().fault(target, valid) is None
    target[:, 0, 0] = 0
    assert build().fault(target, valid) == "a normal of length 0 (1 such pixels; the length is 1)"
    target[:, 0, 0] = float("nan")
    assert build().fault(target, valid).startswith("a normal of length nan")
    valid[0, 0] = False
    assert build().fault(target, valid) is None


def test_mean_direction_beats_other_constants():
    vectors = torch.tensor([[0.0, -0.6, -0.8], [0.6, 0.0, -0.8], [0.0, 0.0, -1.0]]).T.reshape(3, 1, 3)
    valid = torch.ones(1, 3, dtype=torch.bool)
    task = build()
    trivial = task.trivial()
    trivial.update(vectors, valid)
    best = task.decode(trivial.prediction((1, 3)))
    assert torch.allclose(best[0, :, 0, 0], F.normalize(vectors[:, 0].sum(1), dim=0))
    scores = []
    for constant in (best, -best, vectors[:, :, :1].expand(3, 1, 3)[None]):
        scores.append(float((1 - (constant[0] * vectors).sum(0)).mean()))
    assert scores[0] == min(scores)
    assert torch.equal(task.trivial().prediction((1, 1)).flatten(), torch.tensor([0.0, 0.0, -1.0]))


def test_rotation_formula():
    # A quarter turn counter-clockwise takes what points right to what points up.
    right = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(3, 5, 5)
    quarter = Geometry((5, 5), (5, 5), (0, 0, 5, 5), angle=90.0)
    moved, _ = build().move(right, torch.ones(5, 5, dtype=torch.bool), quarter)
    assert torch.allclose(moved[:, 2, 2], torch.tensor([math.cos(math.pi / 2), -1.0, 0.0]), atol=1e-6)
