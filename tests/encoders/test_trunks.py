"""Split and dense: who shares what, the equations of dense as loops, published numbers of parameters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from plain import HRNET, RESNET, SEGNET, TWINS, VIT, build, convolved, count, image, layers, pointwise, tasks
from torch import nn

from polyptych.backbones.segnet import SegNet
from polyptych.balancers._engine import check_branches
from polyptych.decoders.heads import Heads
from polyptych.devices import shapes_only
from polyptych.encoders.dense import Dense
from polyptych.encoders.shared import Shared
from polyptych.encoders.single import Single
from polyptych.encoders.split import Split
from polyptych.errors import InputError
from polyptych.networks import Network

NYUV2 = {"semseg": 13, "depth": 1, "normals": 3}
HEAD = Heads.Config(head="linear", width=64)


@pytest.mark.parametrize("backbone", [RESNET, HRNET, VIT, SEGNET], ids=["resnet", "hrnet", "vit", "segnet"])
@torch.no_grad()
def test_a_split_at_the_heads_is_shared(backbone):
    torch.manual_seed(0)
    shared = Shared.Config().build(backbone=backbone, tasks=tasks(2)).eval()
    torch.manual_seed(0)
    split = Split.Config(private=0).build(backbone=backbone, tasks=tasks(2)).eval()
    assert count(split) == count(shared)
    expected, got = shared(image(dtype=torch.float32)), split(image(dtype=torch.float32))
    assert got["a"] is got["b"]
    assert all(torch.equal(x, y) for x, y in zip(expected["a"].maps, got["a"].maps, strict=True))


@pytest.mark.parametrize("private", [1, 2, 4])
@torch.no_grad()
def test_branches_follow_the_trunk(private):
    encoder = build(Split.Config(private=private), RESNET, tasks(2))
    assert len(encoder.trunk) == 5 - private
    got = encoder(image())
    for task, branch in zip(tasks(2), encoder.branches, strict=True):
        x, maps = image(), []
        for stage in [*encoder.trunk, *branch.stages]:
            x = stage(x)
            maps.append(x)
        assert all(torch.equal(a, b) for a, b in zip(got[task].maps, maps[1:], strict=True))
    assert not torch.equal(got["a"].maps[-1], got["b"].maps[-1])


CONFIGS = {"one": Split.Config(), "two": Split.Config(private=2), "dense": Dense.Config()}
BACKBONES = {"resnet": RESNET, "hrnet": HRNET, "vit": VIT, "segnet": SEGNET}


@pytest.mark.parametrize(("config", "backbone"), [
    pytest.param(config, backbone, id=f"{name}-{on}",
                 marks=[] if on == "resnet" or (name, on) in (("dense", "hrnet"), ("one", "vit"), ("two", "segnet"))
                 else pytest.mark.grid)
    for name, config in CONFIGS.items() for on, backbone in BACKBONES.items()])
def test_the_cut_holds_all_that_tasks_read(config, backbone):
    torch.manual_seed(0)
    encoder = config.build(backbone=backbone, tasks=tasks(2))
    features = encoder(image(dtype=torch.float32))
    check_branches(features.shared)
    loss = sum((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum() for own in features.values() for x in own.maps)
    at_cut = torch.autograd.grad(loss, features.shared, retain_graph=True)  # fails if one of them is not read
    trunk = list((encoder.shared_stages if isinstance(encoder, Dense) else encoder.trunk).parameters())
    through = torch.autograd.grad(features.shared, trunk, at_cut, retain_graph=True)
    whole = torch.autograd.grad(loss, trunk)
    scale = max(float(x.abs().max()) for x in whole)
    assert all(torch.allclose(a, b, atol=1e-5 * scale) for a, b in zip(through, whole, strict=True))


def test_a_loss_of_one_task_leaves_the_branch_of_the_other_alone():
    for config in (Split.Config(private=2), Dense.Config()):
        encoder = config.build(backbone=RESNET, tasks=tasks(2))
        encoder(image(dtype=torch.float32))["a"].maps[-1].square().mean().backward()
        own, other = encoder.branches if isinstance(encoder, Split) else encoder.backbones.values()
        assert all(p.grad is not None for p in own.parameters())
        assert all(p.grad is None for p in other.parameters())


@pytest.mark.parametrize("number", [2, 5])
@torch.no_grad()
def test_dense_reduces_concatenations(number):
    encoder = build(Dense.Config(), RESNET, tasks(number))
    for fusion in layers(encoder.fusions, nn.Conv2d):
        nn.init.normal_(fusion.weight, std=0.3)
    got = encoder(image())
    x, common = image(), []
    for stage in encoder.shared_stages:
        x = stage(x)
        common.append(x)
    assert len(common) == 4
    for task in tasks(number):
        x, maps = image(), []
        for level, stage in enumerate(encoder.backbones[task].stages):
            x = stage(x)
            if level < 4:
                x = pointwise(torch.cat([x, common[level]], 1), encoder.fusions[task][level][0].mix)
            maps.append(x)
        assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(got[task].maps, maps[1:], strict=True))


@pytest.mark.parametrize("number", [2, 5])
@torch.no_grad()
def test_dense_segnet_unpools_each_map_by_its_own_switches(number):
    encoder = build(Dense.Config(), SEGNET, tasks(number))
    got = encoder(image(32, 64))

    def convolve(x, block):
        return convolved(convolved(x, block.first), block.rest)

    x, pooled, unpooled, switches = image(32, 64), [], [], []
    for block in encoder.shared_stages[:5]:
        x, places = F.max_pool2d(convolve(x, block), 2, return_indices=True)
        pooled.append(x)
        switches.append(places)
    for block, places in zip(encoder.shared_stages[5:], reversed(switches), strict=False):
        unpooled.append(F.max_unpool2d(x, places, 2))
        x = convolve(unpooled[-1], block)
    unpooled.append(F.max_unpool2d(x, switches[0], 2))
    for task in tasks(number):
        stages = list(encoder.backbones[task].stages)
        x, own = image(32, 64), []
        for level, block in enumerate(stages[:5]):
            entry = x if level == 0 else torch.cat([x, pooled[level - 1]], 1)
            x, places = F.max_pool2d(convolve(entry, block), 2, return_indices=True)
            own.append(places)
        for level, block in enumerate(stages[5:]):
            x = convolve(torch.cat([F.max_unpool2d(x, own[4 - level], 2), unpooled[level]], 1), block)
        (final,) = got[task].maps
        assert torch.allclose(final, x, atol=1e-10)


@torch.no_grad()
def test_fusion_begins_as_the_mean():
    encoder = Dense.Config().build(backbone=RESNET, tasks=tasks(2))
    x, y = torch.rand(2, 1, encoder.fusions["a"][0][0].mix.out_channels, 3, 4)
    assert torch.allclose(encoder.fusions["a"][0][0](x, y), (x + y) / 2, atol=1e-6)


def test_a_backbone_of_one_stage_shares_its_maps():
    encoder = Dense.Config().build(backbone=TWINS, tasks=tasks(2))
    assert len(encoder.shared_stages) == 1 and len(encoder.fusions["a"][0]) == 4
    with pytest.raises(InputError, match=r"encoder\.private: got 1; needs 0 to 0, of the 1 stages"):
        Split.Config().build(backbone=TWINS, tasks=tasks(2))


@pytest.mark.parametrize(("encoder", "backbone", "expected"), [
    (Single.Config(), SegNet.Config(), 24_981_069 + 24_980_289 + 24_980_419),
    (Split.Config(private=0), SegNet.Config(), 25_055_188 - 3),
    (Split.Config(private=0), SegNet.Config(bottom_width=1024), 43_934_164 - 3),
    (Split.Config(private=0), SegNet.Config(doubled=True), 50_807_764 - 3),
    # The published number counts the last block of the shared network (64 -> 64 -> 13), which nothing reads.
    (Dense.Config(), SegNet.Config(), 123_743_995 - 3 - (64 * 64 * 9 + 3 * 64) - (64 * 13 * 9 + 3 * 13)),
], ids=["single", "split", "wide", "deep", "dense"])
def test_published_numbers_of_parameters(encoder, backbone, expected):
    """Three less than published for what shares: those of uncertainty weighting."""
    with shapes_only():
        assert count(Network.build(backbone, encoder, HEAD, NYUV2)) == expected


@pytest.mark.parametrize("private", [-1, 5])
def test_refusals(private):
    with pytest.raises(InputError, match=rf"encoder\.private: got {private}; needs 0 to 4, of the 5 stages"):
        Split.Config(private=private).build(backbone=RESNET, tasks=tasks(2))
