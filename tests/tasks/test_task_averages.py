"""Mirror images, zooms and means of raw predictions: what they do to predictions is what moving does to labels."""

from __future__ import annotations

import math

import pytest
import torch

from polyptych.data.geometry import Geometry
from polyptych.metrics.keypoints import peaks
from polyptych.tasks._base import CATALOG
from polyptych.types import LabelInfo

LABELS = LabelInfo(classes=("a", "b", "c", "d", "e"), mirror=((1, 2), (3, 4)))
SIZE = (9, 13)
EVERYWHERE = torch.ones(SIZE, dtype=torch.bool)

OPTIONS = [(name, {}) for name in CATALOG.names()] + [
    *(("depth", {"loss": loss}) for loss in ("log_l1", "silog")), *(("keypoints", {"loss": loss}) for loss in
                                                                    ("mse", "focal")),
    *(("inverse_depth", {"zoom": zoom}) for zoom in ("divide", "keep"))]
pytestmark = pytest.mark.parametrize(("name", "options"), OPTIONS, ids=lambda x: x if isinstance(x, str) else
                                     ",".join(x.values()))


def build(name, options):
    return CATALOG.load(name).Config(**options).build(labels=LABELS)


def raw(task, batch=2, seed=0):
    """Of a size that no limit of decoding touches where it is a depth."""
    return torch.rand(batch, task.channels, *SIZE, generator=torch.Generator().manual_seed(seed)) + 0.1


def has_the_form_of_a_label(task) -> bool:
    return task.decode(raw(task)).shape == task.collate([task.empty(SIZE)] * 2).shape


def test_a_mirrored_prediction_decodes_to_the_moved_label(name, options):
    task = build(name, options)
    if not has_the_form_of_a_label(task):
        pytest.skip("labels have another form: tested by themselves")
    geometry = Geometry(SIZE, SIZE, (0, 0, *SIZE), mirror=True)
    expected = torch.stack([task.move(x, EVERYWHERE, geometry)[0] for x in task.decode(raw(task))])
    assert torch.allclose(task.decode(task.mirrored(raw(task))).double(), expected.double(), atol=1e-6)


def test_two_mirrors_cancel(name, options):
    task = build(name, options)
    assert torch.equal(task.mirrored(task.mirrored(raw(task))), raw(task))


@pytest.mark.parametrize("zoom", [0.5, 1.0, 1.3])
def test_a_zoomed_prediction_decodes_to_the_moved_label(name, options, zoom):
    task = build(name, options)
    if not has_the_form_of_a_label(task):
        assert task.zoomed(raw(task), zoom) is not None
        pytest.skip("labels have another form")
    geometry = Geometry(SIZE, SIZE, (0, 0, *SIZE), zoom=zoom)
    expected = torch.stack([task.move(x, EVERYWHERE, geometry)[0] for x in task.decode(raw(task))])
    moved = task.decode(task.zoomed(raw(task), zoom))
    assert torch.allclose(moved.double(), expected.double(), rtol=1e-5)
    assert torch.allclose(task.zoomed(task.zoomed(raw(task), zoom), 1 / zoom), raw(task), atol=1e-6)


def test_the_mean_of_one_is_itself(name, options):
    task, noise = build(name, options), torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(1))
    for x in (raw(task), 5 * raw(task) - 4, raw(task) * noise):
        again = task.decode(task.from_mean(task.to_mean(x)))
        assert torch.allclose(again.double(), task.decode(x).double(), atol=2e-6)
        assert again.isfinite().all()


def test_extreme_predictions_stay_finite(name, options):
    task = build(name, options)
    x = 1e4 * (raw(task) - 0.6)
    back = task.from_mean(task.to_mean(x))
    assert back.isfinite().all(), "it may still be resized"
    assert task.decode(back).isfinite().all()


def test_left_and_right_types_swap_in_the_mirror(name, options):
    task = build(name, options)
    if task.channels != len(LABELS.classes):
        pytest.skip("no types")
    x = torch.full((1, 5, *SIZE), -5.0)
    x[0, 1, 2, 3] = 5.0  # "b", whose mirror image is "c"
    x[0, 0, 4, 5] = 5.0
    mirrored = task.mirrored(x)
    assert mirrored[0, 2, 2, SIZE[1] - 1 - 3] == 5 and (mirrored[0, 1] == -5).all()
    assert mirrored[0, 0, 4, SIZE[1] - 1 - 5] == 5
    if name == "keypoints":
        decoded, swapped = task.decode(x), task.decode(mirrored)
        assert peaks(decoded, EVERYWHERE[None])[0, 1].tolist() == [3, 2]
        assert peaks(swapped, EVERYWHERE[None])[0, 2].tolist() == [9, 2]


def test_means_are_taken_where_the_task_lives(name, options):
    """Each against its plain definition, for two predictions that disagree."""
    task = build(name, options)
    a, b = 3 * raw(task, seed=2), 2 * raw(task, seed=3) - 0.5
    mean = task.decode(task.from_mean((task.to_mean(a) + task.to_mean(b)) / 2))
    match name:
        case "semseg" | "parts":
            expected = (a.double().softmax(1) + b.double().softmax(1)).argmax(1)
        case "depth":
            average = (a.double()[:, 0] + b.double()[:, 0]) / 2
            expected = (average.exp() if options else average).clamp(1e-3, 1e3)
        case "inverse_depth":
            expected = ((a + b)[:, 0].double() / 2).clamp(min=0)
        case "normals":
            total = sum(x.double() / x.double().norm(dim=1, keepdim=True) for x in (a, b))
            expected = total / total.norm(dim=1, keepdim=True)
        case "boundaries" | "saliency":
            expected = sum(1 / (1 + (-x.double()[:, 0]).exp()) for x in (a, b)) / 2
        case "keypoints2d" | "edge_texture":
            expected = sum(x.double()[:, 0].clamp(-1, 1) for x in (a, b)) / 2
        case "classification":
            logits = (a.double().mean((2, 3)) + b.double().mean((2, 3))) / 2
            expected = logits - logits.logsumexp(1, keepdim=True)
        case "keypoints" if options.get("loss") == "focal":
            expected = sum(1 / (1 + (-x.double()).exp()) for x in (a, b)) / 2
        case "keypoints" if options.get("loss") == "mse":
            expected = (a.double() + b.double()) / 2
        case "keypoints":
            place = ((a.double() + b.double()) / 2).flatten(2).softmax(2).view(a.shape)
            expected = (place * 2 * math.pi * (0.02 * math.hypot(*SIZE)) ** 2).clamp(max=1)
        case _:
            pytest.fail(f"say what the mean of two predictions of {name} is")
    assert torch.allclose(mean.double(), expected.double(), atol=1e-5)
