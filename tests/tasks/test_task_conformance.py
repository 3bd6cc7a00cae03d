"""What every task owes to the loop, the evaluation and the pictures, whatever it predicts."""

import ast
import inspect
import textwrap
import typing

import numpy as np
import pytest
import torch

from polyptych.component import Component
from polyptych.data.geometry import Geometry
from polyptych.tasks._base import CATALOG
from polyptych.types import LabelInfo

LABELS = LabelInfo(classes=("a", "b", "c", "d", "e"), mirror=((1, 2),), skeleton=((0, 1), (1, 3)))
SIZE = (9, 13)

pytestmark = pytest.mark.parametrize("name", CATALOG.names())


def build(name, **options):
    return CATALOG.load(name).Config(**options).build(labels=LABELS)


def raw(task, batch=2, size=SIZE, seed=0):
    return torch.randn(batch, task.channels, *size, generator=torch.Generator().manual_seed(seed))


def labels(task, batch=2, size=SIZE):
    """Labels in the task's own form: what some prediction decodes to, or empty ones if that is no label."""
    decoded = task.decode(raw(task, batch, size, seed=1))
    empty = task.collate([task.empty(size)] * batch)
    return decoded if decoded.shape == empty.shape else empty


def garbage(target, valid):
    """The same label with the worst of its type under every invalid pixel, where it is a dense one."""
    if target.shape[-2:] != valid.shape[-2:]:
        return target
    mask = valid if target.ndim == 3 else valid[:, None].expand_as(target)
    return torch.where(mask, target, float("nan") if target.is_floating_point() else 9999)


def some_valid(batch=2, size=SIZE):
    return torch.rand(batch, *size, generator=torch.Generator().manual_seed(2)) > 0.4


def all_options(name):
    """Every choice of loss that a task offers."""
    hints = typing.get_type_hints(CATALOG.load(name).Config)
    return [{"loss": choice} for choice in typing.get_args(hints.get("loss"))] or [{}]


def test_the_catalog_describes_it(name):
    description = CATALOG.describe(name)
    assert description.name == name and description.summary.endswith(".")


def test_every_option_has_help(name):
    for owner in CATALOG.load(name).Config.__mro__:
        if owner is Component.Config or "__annotations__" not in vars(owner) or owner.__name__ != "Config":
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body
        for statement, following in zip(body, [*body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign) and "ClassVar" not in ast.unparse(statement.annotation):
                assert isinstance(following, ast.Expr), f"{ast.unparse(statement)} has no docstring"


def test_attributes_agree_with_the_metric(name):
    task = build(name)
    metric = task.metric()
    target, valid = labels(task), torch.ones(2, *SIZE, dtype=torch.bool)
    metric.update(task.decode(raw(task)), target, valid)
    assert set(metric.compute()) == set(task.higher_is_better)
    assert task.headline in task.higher_is_better
    assert task.channels >= 1 and task.standard_weight > 0


def test_a_metric_that_saw_nothing_says_nan(name):
    task = build(name)
    assert set(task.metric().compute()) == set(task.higher_is_better)
    metric = task.metric()
    metric.update(task.decode(raw(task)), labels(task), torch.zeros(2, *SIZE, dtype=torch.bool))
    for results in (task.metric().compute(), metric.compute()):
        assert all(np.isnan(value) for value in results.values()), results


def test_the_truth_is_perfect(name):
    task = build(name)
    target, valid = labels(task), some_valid()
    if target.shape != task.decode(raw(task)).shape:
        pytest.skip("the decoded form is not the form of the label")
    metric = task.metric()
    metric.update(target, target, valid)
    assert metric.compute()[task.headline] == pytest.approx(task.perfect, abs=1e-3)


def test_nothing_valid_gives_zero_loss_and_zero_gradient(name):
    for options in all_options(name):
        task, valid = build(name, **options), torch.zeros(2, *SIZE, dtype=torch.bool)
        prediction = raw(task).requires_grad_()
        for target in (labels(task), task.collate([task.empty(SIZE)] * 2), garbage(labels(task), valid)):
            loss = task.loss(prediction, target, valid)
            (gradient,) = torch.autograd.grad(loss.mean(), prediction)
            assert loss.sum == 0 and loss.count == 0
            assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_what_is_invalid_has_no_influence(name):
    for options in all_options(name):
        task, valid = build(name, **options), some_valid()
        target = labels(task)
        results = []
        for label, disturbance in ((target, 0), (garbage(target, valid), 100)):
            prediction = (raw(task) + disturbance * ~valid[:, None]).requires_grad_()
            with torch.autograd.detect_anomaly(check_nan=True):  # no NaN on the way either, even if masked later
                loss = task.loss(prediction, label, valid)
                results.append((loss.sum, *torch.autograd.grad(loss.sum, prediction)))
        assert results[0][0].isfinite()
        assert torch.allclose(results[0][0], results[1][0], rtol=1e-5)
        assert torch.allclose(results[0][1], results[1][1], rtol=1e-5)
        assert not results[1][1].masked_select(~valid[:, None]).any()

        metrics = [task.metric(), task.metric()]
        metrics[0].update(task.decode(raw(task)), target, valid)
        metrics[1].update(task.decode(raw(task)), garbage(target, valid), valid)
        assert metrics[0].compute() == pytest.approx(metrics[1].compute(), nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_loss_takes_any_resolution_and_type(name, dtype):
    for options in all_options(name):
        task, valid = build(name, **options), some_valid()
        for size in (SIZE, (3, 4), (1, 1), (17, 20)):
            prediction = raw(task, size=size).to(dtype).requires_grad_()
            loss = task.loss(prediction, labels(task), valid)
            loss.mean().backward()
            assert loss.sum.dtype == torch.float32 and loss.sum.isfinite() and loss.sum.ndim == 0
            assert loss.count == valid.sum()
            assert prediction.grad.isfinite().all()


def test_update_leaves_its_inputs_alone(name):
    task, valid = build(name), some_valid()
    decoded, target = task.decode(raw(task)), labels(task)
    copies = decoded.clone(), target.clone(), valid.clone()
    task.metric().update(decoded, target, valid)
    task.loss(raw(task), target, valid)
    assert all(torch.equal(a, b) for a, b in zip((decoded, target, valid), copies, strict=True))


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (33, 48)])
def test_pictures(name, size):
    task = build(name)
    image = np.full((*size, 3), 200, np.uint8)
    decoded, target = task.decode(raw(task, 1, size))[0], labels(task, 1, size)[0]
    valid = some_valid(1, size)[0]
    before = target.clone()
    picture, label = task.paint(decoded, image), task.paint_target(target, valid, image)
    for each in (picture, label):
        assert each.dtype == np.uint8 and each.shape == (*size, 3) and each.flags.writeable
    assert (label[~valid.numpy()] == 128).all()
    assert (image == 200).all() and torch.equal(before, target)


def test_trivial_learns_from_labels_and_decodes(name):
    for options in all_options(name):
        task = build(name, **options)
        trivial = task.trivial()
        blank = trivial.prediction(SIZE)
        for label, valid in zip(labels(task), some_valid(), strict=True):
            trivial.update(label, valid)
        for prediction in (blank, trivial.prediction(SIZE), trivial.prediction((5, 4))):
            assert prediction.shape[:2] == (1, task.channels) and prediction.isfinite().all()
            assert task.decode(prediction).float().isfinite().all()


@pytest.mark.parametrize("geometry", [
    Geometry(SIZE, SIZE, (0, 0, *SIZE), mirror=True),
    Geometry(SIZE, SIZE, (0, 0, *SIZE), angle=20.0),
    Geometry(SIZE, SIZE, (-2, 3, *SIZE)),
    Geometry(SIZE, (18, 26), (2, 2, 5, 7), zoom=1.8),
    Geometry(SIZE, (5, 6), (-4, -4, 20, 24), angle=-10.0, mirror=True, zoom=0.5),
], ids=["mirror", "rotation", "crop", "zoom", "all"])
def test_moving_makes_no_pixel_valid(name, geometry):
    task = build(name)
    target, valid = labels(task)[0], some_valid()[0]
    moved, kept = task.move(target, valid, geometry)
    assert moved.dtype == target.dtype and kept.dtype == torch.bool and kept.shape == geometry.size
    assert torch.equal(kept, kept & geometry.labels(valid))
    assert not task.move(target, torch.zeros_like(valid), geometry)[1].any()
    assert moved.isfinite().all() and task.fault(moved, kept) is None


def test_two_mirrors_cancel(name):
    task = build(name)
    mirror = Geometry(SIZE, SIZE, (0, 0, *SIZE), mirror=True)
    target, valid = labels(task)[0], some_valid()[0]
    back, kept = task.move(*task.move(target, valid, mirror), mirror)
    assert torch.equal(back, target) and torch.equal(kept, valid)


def test_good_labels_have_no_fault(name):
    task = build(name)
    nothing = torch.zeros(SIZE, dtype=torch.bool)
    assert task.fault(task.empty(SIZE), nothing) is None
    for target, valid in zip(labels(task), some_valid(), strict=True):
        assert task.fault(target, valid) is None
    dense = garbage(labels(task)[:1], nothing[None])[0]
    assert task.fault(dense, nothing) is None


def test_empty_labels_collate_with_full_ones(name):
    task = build(name)
    batch = task.collate([labels(task)[0], task.empty(SIZE)])
    assert len(batch) == 2 and batch.dtype == labels(task).dtype
