"""`polyptych.task`: losses and metrics without a dataset."""

from __future__ import annotations

import math

import pytest
import torch
import torch.multiprocessing

import polyptych
from polyptych.passes import total_loss

RANDOM = torch.Generator().manual_seed(0)


def pixels(kind: str) -> tuple[polyptych.TaskPart, torch.Tensor, torch.Tensor]:
    """A part whose ignored value marks the upper half of its target, and a prediction."""
    classes = 4 if kind in ("semseg", "parts") else ()
    ignored = {"semseg": 255, "parts": 255, "depth": math.nan, "normals": 0}.get(kind, 255)
    part = polyptych.task(kind, classes=classes, ignored=ignored)
    own = part.task.empty((8, 6))
    target = torch.rand(2, *own.shape, generator=RANDOM) + 0.1
    target = (target * 3).to(own.dtype) if not own.is_floating_point() else target
    target = (target > 0.5).float() if kind in ("boundaries", "saliency") else target
    target[..., :4, :] = ignored
    return part, target, torch.randn(2, part.channels, 8, 6, generator=RANDOM)


@pytest.mark.parametrize("kind", ["semseg", "parts", "depth", "normals", "boundaries", "saliency", "inverse_depth"])
def test_an_ignored_value_says_what_valid_says(kind) -> None:
    part, target, prediction = pixels(kind)
    plain = polyptych.task(kind, classes=part.task.labels.classes)
    valid = torch.ones(2, 8, 6, dtype=torch.bool)
    valid[:, :4] = False
    filled = torch.where(valid if target.ndim == 3 else valid[:, None], target, 0)
    assert torch.equal(part.loss(prediction, target), plain.loss(prediction, filled, valid))
    metric, other = part.metric(), plain.metric()
    metric.update(prediction, target)
    other.update(prediction, filled, valid)
    assert metric.compute() == pytest.approx(other.compute(), nan_ok=True) and metric.headline in metric.compute()
    assert part.colors(part.decode(prediction)[0]).shape == (8, 6, 3)


@pytest.mark.parametrize("kind", ["semseg", "depth", "normals", "saliency"])
def test_no_label_gives_zero_and_no_gradient(kind) -> None:
    part, target, prediction = pixels(kind)
    target[:] = part.ignored
    prediction.requires_grad_()
    loss = part.loss(prediction, target)
    loss.backward()
    assert loss.item() == 0 and not prediction.grad.any()


def test_losses_are_those_of_training() -> None:
    data = polyptych.dataset("rooms", "train", ["semseg", "depth", "keypoints", "saliency"], size=(32, 48), frames=2,
                             augment=polyptych.Augment())
    batch = data.collate([data[0], data[1]])
    output = polyptych.network("test_resnet", data.tasks, decoder="pad_net")(batch.image)
    found = polyptych.losses(data.tasks, output, batch.target, batch.valid)
    assert list(found) == list(data.tasks) and output.auxiliary
    for name, loss in found.items():
        assert torch.allclose(loss, total_loss(data.tasks[name].task, name, output, batch).mean(), rtol=1e-5)
    assert list(polyptych.losses(data.tasks, output, {"depth": batch.target["depth"]})) == ["depth"]


def test_one_label_for_an_image_needs_no_mask() -> None:
    part = polyptych.task("classification", classes=3, ignored=-1)
    prediction, target = torch.randn(4, 3, 5, 7), torch.tensor([0, 2, -1, 1])
    expected = torch.nn.functional.cross_entropy(prediction.mean((2, 3)), target, ignore_index=-1)
    assert torch.allclose(part.loss(prediction, target), expected)


@pytest.mark.parametrize("make, said", [
    (lambda: polyptych.task("semsek", classes=3), "nearest: semseg"),
    (lambda: polyptych.task("semseg"), "the name of every class"),
    (lambda: polyptych.task("depth", los="l1"), "depth'.los"),
    (lambda: polyptych.task("semseg", classes=2, colors=[(1, 2, 3)]), "colors"),
    (lambda: polyptych.task("semseg", classes=2).loss(torch.randn(1, 2, 4, 4), torch.full((1, 4, 4), 9)), "ignored="),
    (lambda: polyptych.task("semseg", classes=2).loss(torch.randn(1, 2, 4, 4), torch.rand(1, 4, 4)), "whole numbers"),
    (lambda: polyptych.task("depth").loss(torch.randn(1, 1, 4, 4), torch.rand(1, 1, 4, 4)), "reshape it"),
    (lambda: polyptych.task("depth").loss(torch.randn(1, 1, 4, 4), torch.rand(1, 4, 4), torch.ones(1, 4, 4)), "bool"),
])
def test_what_is_wrong_is_said_in_one_line(make, said) -> None:
    with pytest.raises(polyptych.InputError, match=said):
        make()


def test_the_protocol_of_torchmetrics() -> None:
    part, target, prediction = pixels("semseg")
    metric = part.metric()
    assert math.isnan(metric.compute()["mIoU"])
    metric.update(prediction[:1], target[:1])
    metric.update(prediction[1:], target[1:])
    found = metric.compute()
    assert metric.compute() == found
    metric.sync()
    with pytest.raises(RuntimeError, match="unsync"):
        metric.update(prediction, target)
    metric.unsync()
    metric.reset()
    metric.update(prediction, target)
    assert metric.compute() == found


def _worker(rank: int, meeting: str, out) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    found = []
    for kind in ("semseg", "depth"):
        part, target, prediction = pixels(kind)
        metric = part.metric()
        metric.update(prediction[rank:rank + 1], target[rank:rank + 1])
        found += [metric.compute(), metric.compute()]
        metric.sync()
        found.append(metric.compute())
        metric.unsync()
        found.append(metric.compute())
    out.put((rank, found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path) -> None:
    global RANDOM
    context = torch.multiprocessing.get_context("spawn")
    out = context.Queue()
    workers = [context.Process(target=_worker, args=(rank, str(tmp_path / "meeting"), out)) for rank in range(2)]
    for worker in workers:
        worker.start()
    results = [out.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    RANDOM = torch.Generator().manual_seed(0)  # as in a fresh process
    expected = []
    for kind in ("semseg", "depth"):
        part, target, prediction = pixels(kind)
        metric = part.metric()
        metric.update(prediction, target)
        expected.append(metric.compute())
    for _, found in results:
        assert all(one == pytest.approx(expected[0]) for one in found[:4])
        assert all(one == pytest.approx(expected[1]) for one in found[4:])
