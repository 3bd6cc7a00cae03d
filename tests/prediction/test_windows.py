"""The sliding window: it covers everything, its weights add up to one, and what sees single pixels is unchanged."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fakes import Model, Symmetric
from hypothesis import given, settings
from hypothesis import strategies as st

from polyptych.prediction.predictor import Inference, Predictor
from polyptych.prediction.windows import Axis, slide

ROUNDING = 3e-7  # with AVX-512, the last bit of a sigmoid depends on where its pixel is in memory


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(1, 120), st.floats(0, 0.9))
def test_weights_add_up_to_one_everywhere(length: int, window: int, overlap: float) -> None:
    axis = Axis.cover(length, window, overlap)
    total = torch.zeros(length + window, dtype=torch.float64)
    for start, weight in zip(axis.starts, axis.weights, strict=True):
        assert start >= 0 and (start + window <= length or length < window)
        total[start:start + window] += weight.double()
    assert torch.allclose(total[:length], torch.ones(length).double(), atol=1e-6)
    assert not total[length:].any(), "what lies outside the image has no say"
    assert axis.starts[0] == 0 and axis.starts[-1] == max(0, length - window)
    shared = min(window - 1, math.ceil(overlap * window))
    assert all(a + window - b >= shared for a, b in zip(axis.starts, axis.starts[1:], strict=False))


def test_no_window_more_than_needed() -> None:
    assert Axis.cover(100, 40, 0.25).starts == (0, 30, 60)
    assert Axis.cover(101, 40, 0.25).starts == (0, 20, 41, 61)
    assert Axis.cover(40, 40, 0.5).starts == (0,)
    assert Axis.cover(80, 40, 0).starts == (0, 40)


def test_weights_fall_smoothly_to_the_border() -> None:
    weight = Axis.cover(100, 40, 0.5).weights[1]
    assert weight[0] < 0.01 and weight[-1] < 0.01 and weight.max() > 0.99
    assert (weight.diff().abs() < 0.1).all(), "no step that would show as a seam"


def image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("size", "window", "overlap", "batch"), [
    ((37, 53), (16, 24), 0.25, 1), ((37, 53), (16, 24), 0.6, 4), ((10, 60), (16, 24), 0.25, 3),
    ((10, 12), (16, 24), 0.5, 2), ((1, 1), (5, 7), 0.5, 1), ((33, 33), (33, 8), 0.0, 8)])
def test_what_sees_single_pixels_is_unchanged(size, window, overlap, batch) -> None:
    """For every kind of task, those of the whole image included."""
    picture = image(*size)
    whole = Predictor(Model()).predict(picture)
    model = Model()
    pieces = Predictor(model, Inference(tile=window, overlap=overlap, batch=batch)).predict(picture)
    assert all(shape[0] <= batch and shape[2:] == tuple(map(min, window, size)) for shape in model.seen)
    for task in whole.tasks:
        a, b = whole.decoded[task].double(), pieces.decoded[task].double()
        assert a.shape == b.shape
        if task in ("semseg", "parts"):
            assert (a != b).double().mean() <= 0.001, "but for ties"
        else:
            assert torch.allclose(a, b, atol=2e-5, rtol=1e-4), task


def test_blending_against_plain_loops() -> None:
    """Predictions that differ from window to window: the weighted mean of probabilities, pixel by pixel."""
    model, window, overlap = Model("saliency"), (8, 8), 0.5
    picture = torch.from_numpy(image(12, 20, 3)).permute(2, 0, 1)
    calls = []

    def raw(pieces):
        prediction = {name: value + len(calls) for name, value in model.raw(pieces).items()}  # no two alike
        calls.append(prediction["saliency"])
        return prediction

    blended = slide(raw, model.tasks, picture, window, overlap, batch=1)["saliency"]
    sums, weights = np.zeros((12, 20)), np.zeros((12, 20))
    profile = [math.sin(math.pi / 2 * min(1, (min(i, 7 - i) + 0.5) / 4)) ** 2 for i in range(8)]
    places = [(top, left) for top in (0, 4) for left in (0, 4, 8, 12)]
    assert len(calls) == len(places)
    for (top, left), call in zip(places, calls, strict=True):
        for y in range(8):
            for x in range(8):
                weight = profile[y] * profile[x]
                sums[top + y, left + x] += weight / (1 + math.exp(-float(call[0, 0, y, x])))
                weights[top + y, left + x] += weight
    assert np.allclose(blended.sigmoid()[0, 0].numpy(), sums / weights, atol=1e-6)


@pytest.mark.parametrize(("size", "window", "overlap", "batch"), [
    ((37, 53), (16, 24), 0.25, 1), ((37, 53), (16, 24), 0.8, 7), ((10, 60), (16, 24), 0.25, 3),
    ((33, 9), (8, 8), 0, 2)])
def test_rows_that_are_complete_are_decoded_at_once(size, window, overlap, batch) -> None:
    """The same bits as of the whole map, and only a row of windows waits of a large image."""
    picture, model = image(*size, 5), Symmetric()
    waiting: dict[str, int] = {}

    def finish(task, mean):
        name = next(name for name, each in model.tasks.items() if each is task)
        waiting[name] = max(waiting.get(name, 0), mean.shape[2])
        return task.decode(task.from_mean(mean))[0]

    pixels = torch.from_numpy(picture).permute(2, 0, 1)
    rows = slide(model.raw, model.tasks, pixels, window, overlap, batch, finish)
    whole = slide(model.raw, model.tasks, pixels, window, overlap, batch)
    predicted = Predictor(model, Inference(tile=window, overlap=overlap, batch=batch)).predict(picture)
    for name, task in model.tasks.items():
        assert torch.equal(rows[name], task.decode(whole[name])[0]), name
        torch.testing.assert_close(rows[name], predicted.decoded[name], rtol=ROUNDING, atol=0)
        if task.by_rows and batch == 1:
            assert waiting[name] <= window[0], name


def test_a_whole_image_task_is_pooled_at_any_resolution() -> None:
    """Maps of a quarter of the size, whose cells cover whole pixels: the mean over the image is the same."""
    class Coarse(Model):
        def predict(self, name, unit):
            return torch.nn.functional.avg_pool2d(super().predict(name, unit), 4)

    picture = image(32, 48)
    whole = Predictor(Coarse("classification")).predict(picture)
    pieces = Predictor(Coarse("classification"), Inference(tile=(16, 16), overlap=0)).predict(picture)
    assert torch.allclose(whole.decoded["classification"], pieces.decoded["classification"], atol=1e-5)
