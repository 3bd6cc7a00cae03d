"""AutoMTL's phases against plain transcriptions of the formulas, and against what its authors report."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from torch import nn

from polyptych.backbones._caffe.module_layers import module_layers
from polyptych.backbones.prototxt import of_layers
from polyptych.backbones.timm import Timm
from polyptych.datasets._base import Dataset
from polyptych.search import compile, extract
from polyptych.search.procedure.automtl import BLOCK, Adam, Part, regularizer, sample, temperature
from polyptych.search.space.policy import SHARED
from polyptych.search.supermodel.soft_choices import Logits


def test_the_temperature_falls_as_the_authors_log_it() -> None:
    """(100, 400) steps over 20,000: 4,000 policy steps, 39 times 0.965; (50, 50): 10,000 of them."""
    assert temperature(0) == temperature(100) == 5.0 and temperature(101) == 5.0 * 0.965
    assert temperature(3999) == pytest.approx(1.246, abs=5e-4)
    assert temperature(9999) == pytest.approx(0.147, abs=5e-3)


@pytest.mark.parametrize(("model", "options", "operations", "expected"), [
    pytest.param("resnet34", {}, 36, 24.2, marks=pytest.mark.slow), ("mnasnet_100", {}, 52, 35.4),
    pytest.param("mobilenetv2_100", {"act_layer": nn.ReLU}, 52, 35.4, marks=pytest.mark.slow)])
def test_the_regularizer_at_equal_probabilities_is_that_of_the_authors_backbones(model, options, operations, expected):
    """From a prototxt, as AutoMTL reads them. With all probabilities 1/3 and s = 1: 2 ln 2 times the sum of weights, of
    one task; the published descriptions give 24.2 (36 convolutions) and 35.4 (52)."""
    network = timm.create_model(model, **options)
    layers = [layer for layer in module_layers(network, (3, 224, 224))
              if layer.name not in ("global_pool.pool", "global_pool.flatten", "fc", "classifier")]
    backbone = of_layers(layers, taps=(layers[-1].name,))
    supermodel = compile(backbone, ("a",), space="automtl")
    assert len(supermodel.units) == operations
    choices = [("shared", "own", "skip")] * operations
    uniform = [torch.full((1, 3), 1 / 3) for _ in range(operations)]
    found = float(regularizer(uniform, choices, supermodel.units, 1.0))
    deepest = max(unit.depth for unit in supermodel.units)
    by_hand = sum((deepest - unit.depth) / deepest for unit in supermodel.units) * 2 * math.log(2)
    assert found == pytest.approx(by_hand, rel=1e-5)
    assert found == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_the_regularizer_is_its_formula(scale: float) -> None:
    supermodel = compile(Timm.Config(model="test_resnet").build(), ("a", "b"), space="automtl")
    logits = Logits(supermodel)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for table in logits.tables:
            table.copy_(torch.randn(table.shape, generator=random))
    weights = logits.sample(2.0, generator=random)
    found = regularizer(weights, logits.choices, supermodel.units, scale)
    deepest = max(unit.depth for unit in supermodel.units)
    expected = 0.0
    for unit, names, table in zip(supermodel.units, logits.choices, weights, strict=True):
        for task in range(2):
            p = dict(zip(names, table[task].tolist(), strict=True))
            for name in names:
                if name != SHARED:
                    expected += (deepest - unit.depth) / deepest * math.log(1 + math.exp(scale * (p[name] - p[SHARED])))
    assert found.item() == pytest.approx(expected, rel=1e-5)
    gradient = torch.autograd.grad(found, list(logits.tables))
    earliest = gradient[0][:, list(logits.choices[0]).index(SHARED)]
    assert bool((earliest < 0).all())  # more sharing is less regularizer


def test_adam_is_torchs() -> None:
    supermodel = compile(Timm.Config(model="test_resnet").build(), ("a", "b"), space="automtl")
    mine, theirs = Logits(supermodel), Logits(supermodel)
    adam = Adam(0.01, mine)
    reference = torch.optim.Adam(theirs.parameters(), lr=0.01, weight_decay=5e-4)
    random = torch.Generator().manual_seed(0)
    for _ in range(5):
        gradients = [torch.randn(table.shape, generator=random) for table in mine.tables]
        adam.step(list(mine.tables), gradients)
        for table, gradient in zip(theirs.tables, gradients, strict=True):
            table.grad = gradient.clone()
        reference.step()
    for one, other in zip(mine.tables, theirs.tables, strict=True):
        torch.testing.assert_close(one, other)
    assert set(adam.state_dict()) >= {"steps", "first_0", "second_0"}  # saved with the network


class Numbers(Dataset):
    """Samples that are their own positions."""

    def __init__(self, length: int):
        self.length, self.split, self.tasks, self.labels, self.protocol = length, "train", (), {}, ""
        self.config = Dataset.Config()

    def __len__(self) -> int:
        return self.length

    def read(self, index: int) -> int:
        return index


@pytest.mark.parametrize("length", [5, 7, 99, 100, 101, 119, 795, 2975])
def test_the_two_parts_of_the_data_are_everything_once_in_blocks(length: int) -> None:
    policy, weights = (Part(Numbers(length), part) for part in (True, False))
    one, other = ([part.read(i) for i in range(len(part))] for part in (policy, weights))
    assert sorted([*one, *other]) == list(range(length))
    assert 0.1 <= len(one) / length <= 0.21
    if length >= 100:
        assert one[:BLOCK] == list(range(80, 100))


@pytest.mark.slow
@pytest.mark.parametrize("source", ["prototxt", "timm"])
@pytest.mark.parametrize("model", ["mobilenetv2_100", "mnasnet_100", "resnet34"])
@torch.no_grad()
def test_the_papers_space_on_the_papers_backbones_drawn_and_extracted(model: str, source: str) -> None:
    """36 or 52 operations, three tasks, policies drawn from a soft policy, compact networks that equal the supermodel;
    the same numbers whether the backbone comes from a prototxt or from timm."""
    torch.manual_seed(0)
    options = {"act_layer": nn.ReLU} if model == "mobilenetv2_100" else {}
    network = timm.create_model(model, **options)
    if source == "prototxt":
        backbone = of_layers(module_layers(network, (3, 224, 224)))
    else:
        backbone = Timm.Config(model=model).build()
    supermodel = compile(backbone, ("semseg", "depth", "normals"), space="automtl").eval()
    # timm's feature extractor ends before the last convolution of the mobile networks, the whole network does not.
    expected = {"resnet34": 36, "mobilenetv2_100": 52, "mnasnet_100": 52}[model]
    assert len(supermodel.units) in (expected, expected - 1)
    image = torch.rand(1, 3, 64, 96)
    alone = backbone.eval()(image).maps
    for features in supermodel(image, supermodel.space.all_shared()).values():
        assert all(torch.equal(a, b) for a, b in zip(features.maps, alone, strict=True))
    for policy in sample(Logits(supermodel), 2, seed=0, share_first=10):
        supermodel.space.validate(policy)
        assert set(policy.choices[:10]) == {(SHARED,) * 3}
        inside, compact = supermodel(image, policy), extract(supermodel, policy).eval()(image)
        for task in supermodel.tasks:
            assert all(torch.equal(a, b) for a, b in zip(inside[task].maps, compact[task].maps, strict=True))
