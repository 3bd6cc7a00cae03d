"""Cross-stitch and NDDR against their equations as loops, exact starts, published numbers of parameters."""

from __future__ import annotations

import pytest
import torch
from plain import HRNET, RESNET, SEGNET, VIT, build, count, image, normalized, pointwise, relu, tasks
from torch import nn

from polyptych.backbones.segnet import SegNet
from polyptych.backbones.timm import Timm
from polyptych.decoders.heads import Heads
from polyptych.encoders.cross_stitch import CrossStitch
from polyptych.encoders.nddr import Nddr
from polyptych.encoders.single import Single
from polyptych.errors import InputError
from polyptych.networks import Network
from polyptych.optim import Optimizer, set_learning_rate

R50, R18 = (Timm.Config(model=name, output_stride=8) for name in ("resnet50", "resnet18"))
NYUD, PASCAL, NYUV2 = (40, 1), (21, 7, 1, 3, 1), (13, 1, 3)


@pytest.mark.parametrize("number", [2, 5])
@pytest.mark.parametrize("weights", ["channel", "scalar"])
@torch.no_grad()
def test_cross_stitch_is_a_matrix_product(number, weights):
    encoder = build(CrossStitch.Config(weights=weights), RESNET, tasks(number))
    for unit in (unit for units in encoder.units for unit in units):
        nn.init.normal_(unit.weight)
    got = encoder(image())
    states, maps = [image()] * number, []
    for stage in range(5):
        states = [own.stages[stage](x) for own, x in zip(encoder.backbones.values(), states, strict=True)]
        if stage > 0:
            w = encoder.units[stage][0].weight
            assert w.shape == (number, number, states[0].shape[1] if weights == "channel" else 1)
            stacked = torch.stack(states)
            w = w.expand(-1, -1, stacked.shape[2])
            states = [torch.stack([sum(w[i, j, c] * stacked[j, :, c] for j in range(number))
                                   for c in range(stacked.shape[2])], dim=1) for i in range(number)]
            maps.append(states)
    for i, task in enumerate(tasks(number)):
        for x, expected in zip(got[task].maps, maps, strict=True):
            assert torch.allclose(x, expected[i], atol=1e-10)
    assert got.shared == ()


@torch.no_grad()
def test_a_weight_per_source_gives_all_tasks_the_same_sum():
    encoder = build(CrossStitch.Config(weights="source"), RESNET, tasks(2))
    a, b = encoder(image()).values()
    assert torch.equal(a.maps[-1], b.maps[-1])
    assert all((unit.weight == 1).all() and unit.weight.numel() == 2 for units in encoder.units for unit in units)


@pytest.mark.parametrize(("training", "backbone"), [
    (True, RESNET), (False, HRNET), (True, VIT), (False, SEGNET), *(
        pytest.param(*pair, marks=pytest.mark.grid) for pair in ((False, RESNET), (True, HRNET), (False, VIT),
                                                             (True, SEGNET)))],
    ids=["training-resnet", "hrnet", "training-vit", "segnet", "resnet", "training-hrnet", "vit", "training-segnet"])
@torch.no_grad()
def test_identity_stitching_is_single_bit_for_bit(backbone, training):
    torch.manual_seed(3)
    single = Single.Config().build(backbone=backbone, tasks=tasks(2)).train(training)
    torch.manual_seed(3)
    stitched = CrossStitch.Config(own=1.0, after_stem=True).build(backbone=backbone, tasks=tasks(2)).train(training)
    expected, got = (encoder(image(dtype=torch.float32)) for encoder in (single, stitched))
    for task in tasks(2):
        assert all(torch.equal(x, y) for x, y in zip(expected[task].maps, got[task].maps, strict=True))


def test_weights_begin_as_published_and_sum_to_one():
    def start(number, own):
        encoder = CrossStitch.Config(own=own, weights="scalar").build(backbone=RESNET, tasks=tasks(number))
        return encoder.units[1][0].weight[..., 0]

    assert torch.allclose(start(2, 0.9), torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
    assert torch.allclose(start(5, 0.8), 0.75 * torch.eye(5) + 0.05)
    alone = CrossStitch.Config().build(backbone=RESNET, tasks=("a",))
    assert (alone.units[1][0].weight == 1).all()


@pytest.mark.parametrize("number", [2, 5])
@torch.no_grad()
def test_nddr_is_concatenation_and_a_1x1_convolution(number):
    encoder = build(Nddr.Config(), RESNET, tasks(number))
    got = encoder(image())
    states, maps = [image()] * number, []
    for stage in range(5):
        states = [own.stages[stage](x) for own, x in zip(encoder.backbones.values(), states, strict=True)]
        stacked = torch.cat(states, dim=1)
        states = [relu(normalized(pointwise(stacked, reduction.mix), reduction.norm))
                  for reduction in encoder.units[stage][0].reductions]
        maps += [states] if stage else []
    for i, task in enumerate(tasks(number)):
        for x, expected in zip(got[task].maps, maps, strict=True):
            assert torch.allclose(x, expected[i], atol=1e-10)
    assert got.shared == ()


@torch.no_grad()
def test_shortcut_reduces_the_results_of_all_units():
    encoder = build(Nddr.Config(shortcut=True), RESNET, tasks(2))
    for reduction in encoder.shortcuts.values():
        nn.init.normal_(reduction.mix.weight)
    plain = build(Nddr.Config(), RESNET, tasks(2))
    plain.load_state_dict({k: v for k, v in encoder.state_dict().items() if not k.startswith("shortcuts")})
    got, without = encoder(image()), plain(image())
    stems = []
    for own in plain.backbones.values():
        stems.append(own.stages[0](image()))
    for i, task in enumerate(tasks(2)):
        mixing = plain.units[0][0].reductions[i]
        stem = relu(normalized(pointwise(torch.cat(stems, 1), mixing.mix), mixing.norm))
        *early, last = without[task].maps
        stacked = torch.cat([*(nn.functional.interpolate(x, last.shape[2:], mode="bilinear") for x in (stem, *early)),
                             last], dim=1)
        reduction = encoder.shortcuts[task]
        expected = relu(normalized(pointwise(stacked, reduction.mix), reduction.norm))
        assert torch.allclose(got[task].maps[-1], expected, atol=1e-10)
        assert all(torch.equal(x, y) for x, y in zip(got[task].maps[:-1], early, strict=True))


def test_nddr_begins_diagonal():
    unit = Nddr.Config(own=0.8).build(backbone=RESNET, tasks=tasks(5)).units[2][0]
    channels = unit.reductions[0].mix.out_channels
    for i, reduction in enumerate(unit.reductions):
        blocks = reduction.mix.weight[:, :, 0, 0].split(channels, dim=1)
        for j, block in enumerate(blocks):
            assert torch.allclose(block, (0.8 if i == j else 0.05) * torch.eye(channels))
        assert reduction.norm.momentum == 0.05 and reduction.mix.bias is None


@torch.no_grad()
def test_negative_features_pass_without_activation():
    kept = build(Nddr.Config(activation="none"), VIT, tasks(2))
    assert isinstance(kept.units[0][0].reductions[0].activation, nn.Identity)
    states = [own.stages[0](image()) for own in kept.backbones.values()]
    assert all((x < 0).any() for x in kept.units[0][0]([state[0] for state in states]))


@pytest.mark.parametrize(("config", "decay"), [
    (CrossStitch.Config(learning_rate_factor=100.0), 0.0), (Nddr.Config(learning_rate_factor=100.0), 0.25),
    (Nddr.Config(learning_rate_factor=100.0, shortcut=True), 0.25)], ids=["stitch", "nddr", "shortcut"])
def test_units_have_a_learning_rate_of_their_own(config, decay):
    """It reaches the optimizer, and the steps; NDDR's convolutions are decayed like any, cross-stitch weights never."""
    network = Network.build(RESNET, config, Heads.Config(), {"a": 2, "b": 1})
    optimizer = Optimizer(kind="sgd", learning_rate=0.01, weight_decay=0.25, momentum=0.0).build(network, nn.Module())
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    units = [p for name, p in network.named_parameters() if name.startswith(("encoder.units", "encoder.shortcuts"))]
    others = [p for name, p in network.named_parameters() if not name.startswith(("encoder.units", "encoder.short"))]
    assert len(units) + len(others) == len(groups) and len(units) > 3
    assert all(groups[id(p)]["peak"] == pytest.approx(1.0) for p in units)
    assert all(groups[id(p)]["peak"] == pytest.approx(0.01) for p in others)
    assert all(groups[id(p)]["weight_decay"] == (decay if p.ndim > 1 else 0) for p in units)
    assert all(groups[id(p)]["weight_decay"] == (0.25 if p.ndim > 1 else 0) for p in others)
    before = {id(p): p.detach().clone() for p in network.parameters()}
    set_learning_rate(optimizer, 0.5)
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    for p in network.parameters():
        rate = 0.5 if any(p is unit for unit in units) else 0.005
        moved = rate * (1 + groups[id(p)]["weight_decay"] * before[id(p)])
        assert torch.allclose(p, before[id(p)] - moved, atol=1e-6)


@pytest.mark.parametrize(("config", "backbone", "head", "channels", "expected"), [
    (CrossStitch.Config(), R50, Heads.Config(head="aspp"), NYUD, 79_292_841),
    pytest.param(CrossStitch.Config(), R18, Heads.Config(head="aspp"), PASCAL, 79_525_921, marks=pytest.mark.grid),
    pytest.param(Nddr.Config(), R50, Heads.Config(head="aspp"), NYUD, 101_591_721, marks=pytest.mark.grid),
    (Nddr.Config(), R18, Heads.Config(head="aspp"), PASCAL, 88_318_561),
    # MTAN's own: three networks and 27 weights (its 74,941,807 count three more, of uncertainty weighting)
    (CrossStitch.Config(weights="source", after_last=False), SegNet.Config(), Heads.Config(head="linear", width=64),
     NYUV2, 24_981_069 + 24_980_289 + 24_980_419 + 27),
], ids=["stitch-r50", "stitch-r18", "nddr-r50", "nddr-r18", "stitch-segnet"])
def test_published_numbers_of_parameters(config, backbone, head, channels, expected):
    with torch.device("cpu" if isinstance(config, Nddr.Config) else "meta"):  # NDDR's weights begin as given numbers
        assert count(Network.build(backbone, config, head, {f"task{i}": c for i, c in enumerate(channels)})) == expected


@pytest.mark.parametrize(("config", "said"), [
    (CrossStitch.Config(own=1.5), "encoder.own: got 1.5; needs a share between 0 and 1"),
    (Nddr.Config(own=float("nan")), "encoder.own: got nan"),
    (Nddr.Config(momentum=3.0), "encoder.momentum: got 3.0; needs a share between 0 and 1"),
    (Nddr.Config(learning_rate_factor=0.0), "encoder.learning_rate_factor: got 0.0; needs a positive number"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_refusals(config, said):
    with pytest.raises(InputError) as error:
        config.build(backbone=RESNET, tasks=tasks(2))
    assert said in str(error.value)
