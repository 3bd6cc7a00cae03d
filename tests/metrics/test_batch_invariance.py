"""Numbers of an image do not depend on which images of other sizes stand in its batch."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from polyptych.data.transforms import collate, resize_image
from polyptych.evaluation import Evaluator, measure
from polyptych.frames import framed_predictions, frames
from polyptych.run import Run
from polyptych.tasks._base import CATALOG
from polyptych.types import LabelInfo, Output, Sample, SampleInfo

LABELS = LabelInfo(classes=("a", "b", "c", "d", "e"), mirror=((1, 2),))
SIZES = ((60, 100), (100, 60), (100, 60))  # at 0.04 of the diagonal the tolerance is 4 pixels, in the square 5
OPTIONS = {"boundaries": {"benchmark": "nyud_survey", "tolerance": 0.04}}


def build(name):
    return CATALOG.load(name).Config(**OPTIONS.get(name, {})).build(labels=LABELS)


def sample(name, task, index):
    """A label and an image from which a prediction can be told that is not quite the label."""
    make = torch.Generator().manual_seed(index)
    size = SIZES[index]
    image = (255 * torch.rand(3, *size, generator=make)).byte()
    if name == "keypoints":
        target = torch.rand(2, 5, 3, generator=make) * torch.tensor([size[1], size[0], 2.0])
        target = torch.cat([target[..., :2].floor(), target[..., 2:].round().clamp(max=1)], -1)
    elif name == "classification":
        target = torch.tensor(index % 5)
    elif name == "boundaries":
        target = torch.zeros(size)
        target[:, 7::20] = 1
    else:
        decoded = task.decode(torch.randn(1, task.channels, *size, generator=make))[0]
        empty = task.empty(size)
        target = decoded.to(empty.dtype) if decoded.shape == empty.shape else empty
    return Sample(image, {name: target}, {name: torch.rand(size, generator=make) > 0.1},
                  SampleInfo(str(index), size, size))


class Network(torch.nn.Module):
    """Looks across the border of the image, as networks do, and depends on its size."""

    def __init__(self, name, channels):
        super().__init__()
        self.name, self.pick = name, torch.nn.Conv2d(3, channels, 5, padding=2, padding_mode="reflect")
        torch.manual_seed(0)
        torch.nn.init.normal_(self.pick.weight, std=0.5)

    def forward(self, image):
        raw = self.pick(image.float() / 255)
        if self.name == "boundaries":  # strokes five pixels beside the true ones
            raw = raw * 0.1 - 4
            raw[..., 12::20] += 8
        return Output({self.name: raw})


@pytest.mark.parametrize("input_size", [None, (32, 40)])
@pytest.mark.parametrize("name", CATALOG.names())
def test_batches_of_one_and_of_all_measure_the_same(name, input_size, small_run: Run) -> None:
    task = build(name)
    samples = [resize_image(sample(name, task, index), input_size) for index in range(len(SIZES))]
    evaluator = Evaluator(small_run, {name: task}, torch.device("cpu"))
    trivial = task.trivial()
    for item in samples:
        trivial.update(item.target[name], item.valid[name])
    evaluator._learn_trivials = lambda: {name: trivial}
    predictors = {"network": evaluator.network_predictor(Network(name, task.channels)),
                  "trivial": evaluator.trivial_predictor()}
    results = []
    for batch_size in (1, 2, 3):
        batches = [collate(samples[k:k + batch_size], {name: task}) for k in range(0, len(samples), batch_size)]
        found = measure(predictors, batches, {name: task}, torch.device("cpu"), final=True)
        results.append({f"{who} {number}": value for who, metrics in found.items()
                        for metric in metrics.values() for number, value in metric.compute().items()})
    assert any(value == value for value in results[0].values())
    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-6, nan_ok=True)


def test_a_mean_over_batches_still_takes_the_whole_batch() -> None:
    results = {}
    for over in ("image", "batch", "batch_weighted"):
        task = CATALOG.load("depth").Config(accumulation=over).build(labels=LABELS)
        samples = [sample("depth", task, index) for index in range(len(SIZES))]
        # Errors of 0, 1 and 3 m, the second image with half as many pixels.
        for item, error in zip(samples, (0.0, 1.0, 3.0), strict=True):
            item.target["depth"], item.valid["depth"] = torch.full_like(item.target["depth"], 1 + error), torch.ones(
                item.info.native, dtype=torch.bool)
        samples[1].valid["depth"][:50] = False
        batches = [collate(samples[:2], {"depth": task}), collate(samples[2:], {"depth": task})]
        ones = {"network": lambda batch: {"depth": [torch.ones(part.images, *part.native) for part in frames(batch)]}}
        results[over] = measure(ones, batches, {"depth": task}, torch.device("cpu"))["network"]["depth"].compute()
    assert results["image"]["abs"] == pytest.approx(4 / 3)
    assert results["batch"]["abs"] == pytest.approx((1 / 3 + 3) / 2)
    assert results["batch_weighted"]["abs"] == pytest.approx((2 * 1 / 3 + 3) / 3)


def test_a_batch_that_memory_does_not_take_is_measured_in_pieces(small_run: Run, monkeypatch) -> None:
    task = build("semseg")
    samples = [resize_image(sample("semseg", task, 1 + index % 2), (32, 40)) for index in range(5)]
    batch = collate(samples, {"semseg": task})
    predict = Evaluator(small_run, {"semseg": task}, torch.device("cpu")).network_predictor(
        Network("semseg", task.channels))
    whole = measure({"network": predict}, [batch], {"semseg": task}, torch.device("cpu"))["network"]["semseg"]
    assert [part.images for part in frames(batch)] == [5]
    monkeypatch.setattr("polyptych.frames.PIXELS", 2 * 100 * 60 + 1)
    assert [part.rows for part in frames(batch)] == [slice(0, 2), slice(2, 4), slice(4, 5)]
    parts = measure({"network": predict}, [batch], {"semseg": task}, torch.device("cpu"))["network"]["semseg"]
    assert parts.compute() == whole.compute()
    monkeypatch.setattr("polyptych.frames.PIXELS", 1)
    assert [part.images for part in frames(batch)] == [1] * 5


def test_a_split_is_opened_once(small_run: Run, monkeypatch) -> None:
    opened = []
    build_dataset = Run.build_dataset
    monkeypatch.setattr(Run, "build_dataset", lambda run, split: opened.append(split) or build_dataset(run, split))
    tasks = small_run.build_tasks(small_run.build_dataset("val").labels)
    evaluator = Evaluator(small_run, tasks, torch.device("cpu"))
    network = small_run.build_network(tasks, pretrained=False)
    first, again = (evaluator.evaluate(network, "val") for _ in range(2))
    assert sorted(opened) == ["train", "val", "val"]  # the first to build the tasks
    assert {name: task.metrics for name, task in first.tasks.items()} == {
        name: task.metrics for name, task in again.tasks.items()}


def test_images_of_one_size_stay_together() -> None:
    task = build("depth")
    asked = []

    def forward(image):
        asked.append(tuple(image.shape))
        return {"depth": torch.zeros(len(image), 1, *image.shape[-2:])}

    alike = collate([sample("depth", task, 1), sample("depth", task, 2)], {"depth": task})
    assert [x.shape for x in framed_predictions(alike, forward, {"depth": task})["depth"]] == [(2, 100, 60)]
    resized = collate([resize_image(sample("depth", task, index), (32, 40)) for index in (0, 1)], {"depth": task})
    assert [x.shape for x in framed_predictions(resized, forward, {"depth": task})["depth"]] == [
        (1, 60, 100), (1, 100, 60)]
    mixed = collate([sample("depth", task, index) for index in (0, 1)], {"depth": task})
    framed_predictions(mixed, forward, {"depth": task})
    assert asked == [(2, 3, 100, 60), (2, 3, 32, 40), (1, 3, 60, 100), (1, 3, 100, 60)]
    assert dataclasses.astuple(frames(mixed)[1]) == (slice(1, 2), (100, 60), (100, 60))
