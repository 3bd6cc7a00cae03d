"""MTAN and STAN against the equations as loops, in all three forms; masks of ones; published numbers of parameters."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from plain import (
    HRNET,
    RESNET,
    SEGNET,
    TWINS,
    VIT,
    WIDE,
    build,
    convolved,
    count,
    image,
    layers,
    mask,
    normalized,
    pointwise,
    pooled,
    relu,
    scramble,
    tasks,
    threefold,
)
from torch import nn

from polyptych.backbones.segnet import SegNet
from polyptych.backbones.timm import Timm
from polyptych.backbones.wide_resnet import WideResNet
from polyptych.balancers._engine import check_branches
from polyptych.decoders.heads import Heads
from polyptych.encoders.mtan import Mtan
from polyptych.encoders.shared import Shared
from polyptych.encoders.stan import Stan
from polyptych.networks import Network

NARROW = Timm.Config(model="resnet18", architecture="channels=(8, 16, 24, 32)")
R50, R18 = (Timm.Config(model=name, output_stride=8) for name in ("resnet50", "resnet18"))
ASPP, LINEAR = Heads.Config(head="aspp"), Heads.Config(head="linear")
SEGNET_HEAD = Heads.Config(head="linear", width=64)
DECATHLON = (1000, 100, 100, 2, 47, 43, 1623, 10, 101, 102)


def bottleneck(x, block):
    inside, around = layers(block.change, nn.Conv2d), layers(block.shortcut, nn.Conv2d)
    norms = layers(block.change, nn.BatchNorm2d)
    y = relu(normalized(pointwise(x, inside[0]), norms[0]))
    y = relu(normalized(threefold(y, inside[1]), norms[1]))
    y = normalized(pointwise(y, inside[2]), norms[2])
    return relu(y + (normalized(pointwise(x, around[0]), block.shortcut[1]) if around else x))


@pytest.mark.parametrize("number", [2, 5])
@pytest.mark.parametrize("backbone", [NARROW, replace(NARROW, output_stride=8)], ids=["resnet", "dilated"])
@torch.no_grad()
def test_residual_form(number, backbone):
    encoder = build(Mtan.Config(), backbone, tasks(number))
    got = encoder(image())
    reference = backbone.build().double().eval()  # its stages are whole
    blocks = dict(zip(reference.state_dict(), encoder.backbone.state_dict().values(), strict=True))
    reference.load_state_dict(blocks)
    u, p, x = [], [], reference.stages[0](image())
    for layer in reference.stages[1:]:
        u.append(layer[:-1](x))
        x = layer[-1](u[-1])
        p.append(x)
    for task in tasks(number):
        attended = []
        for level in range(4):
            entry = u[level]
            if level:
                refined = bottleneck(attended[-1], encoder.steps[level - 1].ways[0].before)
                if refined.shape[-1] != entry.shape[-1]:
                    refined = pooled(refined)
                entry = torch.cat([entry, refined], dim=1)
            attended.append(mask(entry, encoder.masks[task][level]) * p[level])
        for a, b in zip(got[task].maps, attended, strict=True):
            assert torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("number", [2, 5])
@torch.no_grad()
def test_segnet_form(number):
    encoder = build(Mtan.Config(), SEGNET, tasks(number))
    got = encoder(image(32, 64))
    blocks = list(encoder.backbone.stages)
    x, taken, switches = image(32, 64), [], []
    for block in blocks[:5]:
        u = convolved(x, block.first)
        p = convolved(u, block.rest)
        taken.append((u, p))
        x, places = F.max_pool2d(p, 2, return_indices=True)
        switches.append(places)
    for block, places in zip(blocks[5:], reversed(switches), strict=True):
        u = F.max_unpool2d(x, places, 2)
        x = convolved(convolved(u, block.first), block.rest)
        taken.append((u, x))
    ways = [step.ways[0] for step in encoder.steps]
    for task in tasks(number):
        masks = encoder.masks[task]
        a = mask(taken[0][0], masks[0]) * taken[0][1]
        for level in range(1, 5):
            a = pooled(convolved(a, ways[level - 1].before))
            a = mask(torch.cat([taken[level][0], a], 1), masks[level]) * taken[level][1]
        d = pooled(convolved(a, ways[4].before))
        for level in range(5):
            up = F.interpolate(d, scale_factor=2, mode="bilinear", align_corners=True)
            b = convolved(up, ways[4 + level].after)
            d = mask(torch.cat([taken[5 + level][0], b], 1), masks[5 + level]) * taken[5 + level][1]
        (own,) = got[task].maps
        assert torch.allclose(own, d, atol=1e-10)


@pytest.mark.parametrize("number", [2, 5])
@torch.no_grad()
def test_wide_residual_form(number):
    encoder = build(Mtan.Config(), WIDE, tasks(number))
    got = encoder(image(72, 72))
    g, x = [], image(72, 72)
    for stage in encoder.backbone.stages:
        x = stage(x)
        g.append(x)
    for task in tasks(number):
        expected, a = [], None
        for level in range(4):
            entry = g[level] if a is None else torch.cat([g[level], a], 1)
            masked = mask(entry, encoder.masks[task][level]) * g[level]
            refined = convolved(masked, encoder.steps[level])
            a = pooled(refined) if level < 3 else refined
            expected.append(masked if level < 3 else refined)
        for x, y in zip(got[task].maps, expected, strict=True):
            assert torch.allclose(x, y, atol=1e-10)


@pytest.mark.parametrize("backbone", [RESNET, HRNET, VIT, SEGNET, Timm.Config(model="test_convnext"), TWINS],
                         ids=["resnet", "hrnet", "vit", "segnet", "convnext", "whole"])
@torch.no_grad()
def test_with_masks_of_ones_it_is_shared(backbone):
    torch.manual_seed(0)
    shared = Shared.Config().build(backbone=backbone, tasks=tasks(2)).eval()
    torch.manual_seed(0)
    mtan = Mtan.Config().build(backbone=backbone, tasks=tasks(2)).eval()
    for sigmoid in layers(mtan.masks, nn.Sigmoid):
        sigmoid.forward = torch.ones_like
    x = image(dtype=torch.float32)
    expected, got = shared(x), mtan(x)
    for task in tasks(2):
        assert all(torch.equal(a, b) for a, b in zip(expected[task].maps, got[task].maps, strict=True))


def test_masks_are_between_zero_and_one_and_differ_between_tasks():
    encoder = build(Mtan.Config(), RESNET, tasks(2))
    shared = Shared.Config().build(backbone=RESNET, tasks=("a",)).double().eval()
    shared.backbone.load_state_dict(
        dict(zip(shared.backbone.state_dict(), encoder.backbone.state_dict().values(), strict=True)))
    with torch.no_grad():
        got, whole = encoder(image()), shared(image())["a"]
    for a, b, x in zip(got["a"].maps, got["b"].maps, whole.maps, strict=True):
        assert (a.abs() <= x.abs()).all() and (a.abs() < x.abs()).any() and not torch.equal(a, b)


@pytest.mark.parametrize("backbone", [RESNET, HRNET, VIT, SEGNET, WIDE],
                         ids=["resnet", "hrnet", "vit", "segnet", "wrn"])
def test_the_cut_holds_all_that_tasks_read(backbone):
    """Gradients through the cut are all that the shared backbone gets, and no tensor of it is made of another."""
    torch.manual_seed(0)
    encoder = Mtan.Config().build(backbone=backbone, tasks=tasks(2))
    features = encoder(image(dtype=torch.float32))
    check_branches(features.shared)
    loss = sum((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum() for own in features.values() for x in own.maps)
    at_cut = torch.autograd.grad(loss, features.shared, retain_graph=True)
    # The pyramid that a plain transformer gets is shared as well, but made of attended maps.
    trunk = list(encoder.backbone.stages.parameters())
    through = torch.autograd.grad(features.shared, trunk, at_cut, retain_graph=True)
    whole = torch.autograd.grad(loss, trunk)
    scale = max(float(x.abs().max()) for x in whole)
    assert all(torch.allclose(a, b, atol=1e-5 * scale) for a, b in zip(through, whole, strict=True))


@torch.no_grad()
def test_stan_is_mtan_of_one_task_each():
    stan = build(Stan.Config(), RESNET, tasks(2))
    got = stan(image())
    assert got.shared == ()
    for task in tasks(2):
        alone = Mtan.Config().build(backbone=RESNET, tasks=(task,))
        scramble(alone)
        alone.load_state_dict(stan.encoders[task].state_dict())
        expected = alone.double().eval()(image())[task]
        assert all(torch.equal(x, y) for x, y in zip(got[task].maps, expected.maps, strict=True))


@pytest.mark.parametrize("backbone", [RESNET, SEGNET, WIDE], ids=["resnet", "segnet", "wrn"])
def test_saved_once_and_copied_whole(backbone):
    """The backbone is its own trunk (SegNet), or the trunk refers to it: neither may be saved, or copied, twice."""
    encoder = Mtan.Config().build(backbone=backbone, tasks=tasks(2))
    addresses = [value.data_ptr() for value in encoder.state_dict().values()]
    assert len(addresses) == len(set(addresses))
    copy = deepcopy(encoder)
    inside = copy.trunk if isinstance(copy.trunk, nn.Module) else copy.trunk.backbone
    assert inside is copy.backbone and copy.backbone is not encoder.backbone


def test_odd_sizes_on_segnet():
    encoder = Mtan.Config().build(backbone=SEGNET, tasks=tasks(2))
    (own,) = encoder(image(37, 51, dtype=torch.float32))["a"].maps
    assert own.shape[2:] == (37, 51)


@pytest.mark.parametrize(("config", "backbone", "head", "channels", "expected"), [
    pytest.param(Mtan.Config(), R50, ASPP, (13, 1, 3), 92_347_921, marks=pytest.mark.grid),
    (Mtan.Config(), R50, ASPP, (40, 1), 72_052_713),
    pytest.param(Mtan.Config(), R18, ASPP, (21, 7, 1, 3, 1), 36_613_425, marks=pytest.mark.grid),
    # The published 44,229,076 counts three numbers of uncertainty weighting.
    (Mtan.Config(), SegNet.Config(), SEGNET_HEAD, (13, 1, 3), 44_229_076 - 3),
    (Stan.Config(), SegNet.Config(), SEGNET_HEAD, (13,), 38_185_805),
    pytest.param(Mtan.Config(), WideResNet.Config(), LINEAR, DECATHLON, 10_237_656, marks=pytest.mark.grid),
], ids=["r50-nyuv2", "r50-nyud", "r18-pascal", "segnet", "stan-segnet", "wrn-decathlon"])
def test_published_numbers_of_parameters(config, backbone, head, channels, expected):
    assert count(Network.build(backbone, config, head, {f"task{i}": c for i, c in enumerate(channels)})) == expected


def test_numbers_of_the_parts_of_segnet():
    encoder = Mtan.Config().build(backbone=SegNet.Config(), tasks=tasks(2))
    down, up = encoder.masks["a"][:5], encoder.masks["a"][5:]
    assert 3 * count(down) == 5_506_944 and 3 * count(up) == 3_446_784
    before = sum(count(step.ways[0].before) for step in encoder.steps if step.ways[0].before is not None)
    after = sum(count(step.ways[0].after) for step in encoder.steps if step.ways[0].after is not None)
    assert (before, after) == (6_272_640, 3_947_520)
