"""Every metric: any split into batches and processes gives the result of the whole at once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyptych.metrics.angles import AngularError
from polyptych.metrics.boundaries import BoundaryF
from polyptych.metrics.confusion import ConfusionMatrix
from polyptych.metrics.depth import DepthError
from polyptych.metrics.keypoints import KeypointError
from polyptych.metrics.saliency import SaliencyF

IMAGES, SIZE = 6, (7, 9)


def data(kind, seed):
    make = torch.Generator().manual_seed(seed)
    uniform = lambda *shape: torch.rand(IMAGES, *shape, generator=make)  # noqa: E731
    valid = uniform(*SIZE) > 0.3
    valid[seed % IMAGES] = False
    if kind is ConfusionMatrix:
        return [(uniform(*SIZE) * 5).long(), (uniform(*SIZE) * 6).long(), valid]
    if kind is DepthError:
        return [uniform(*SIZE) * 9 + 0.1, uniform(*SIZE) * 9 + 0.1, valid]
    if kind is AngularError:
        return [uniform(3, *SIZE) - 0.5, uniform(3, *SIZE) - 0.5, valid]
    if kind is KeypointError:
        return [uniform(4, *SIZE), (uniform(2, 4, 3) * torch.tensor([9, 7, 2.0])).floor(), valid]
    return [uniform(*SIZE), (uniform(*SIZE) > 0.7).float(), valid]


KINDS = pytest.mark.parametrize(("kind", "make"), [
    (ConfusionMatrix, lambda: ConfusionMatrix(5)), (DepthError, DepthError), (AngularError, AngularError),
    (BoundaryF, lambda: BoundaryF(0.6, 0.1)), (SaliencyF, SaliencyF),
    (SaliencyF, lambda: SaliencyF(double_sigmoid=True)), (KeypointError, lambda: KeypointError(0.2)),
], ids=["confusion", "depth", "angles", "boundaries", "saliency", "double sigmoid", "keypoints"])


@KINDS
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), owners=st.lists(st.integers(0, 2), min_size=IMAGES, max_size=IMAGES))
def test_streaming_equals_one_shot(kind, make, seed, owners):
    values = data(kind, seed)
    whole = make()
    whole.update(*values)
    parts = [make() for _ in range(3)]  # three processes; each sees its images one at a time or together
    for process, part in enumerate(parts):
        mine = [i for i in range(IMAGES) if owners[i] == process]
        for chunk in ([mine] if process == 0 else [[i] for i in mine]):
            if chunk:
                part.update(*(value[chunk] for value in values))
    merged = make()
    for part in parts:
        merged.merge(part)
    expected = whole.compute()
    assert merged.compute() == pytest.approx(expected, rel=1e-12, nan_ok=True)
    assert not any(np.isnan(value) for value in expected.values())


@KINDS
def test_sums_are_wide_and_stay_on_the_device(kind, make):
    metric = make()
    metric.update(*data(kind, 0))
    assert {value.dtype for value in metric.sums.values()} <= {torch.float64, torch.int64}


@KINDS
def test_halves_are_measured_like_floats(kind, make):
    prediction, target, valid = data(kind, 0)
    if prediction.is_floating_point():
        results = []
        for dtype in (torch.bfloat16, torch.float32):
            metric = make()
            metric.update(prediction.bfloat16().to(dtype), target, valid)
            results.append(metric.compute())
        assert results[0] == pytest.approx(results[1], rel=1e-9)
