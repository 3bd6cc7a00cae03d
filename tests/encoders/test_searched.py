"""The encoder `searched`: policies from files, any backbone at any size, the cut, costs, run.json."""

from __future__ import annotations

import json
from functools import cache
from random import Random

import pytest
import torch

from polyptych.backbones.segnet import SegNet
from polyptych.backbones.timm import Timm
from polyptych.backbones.wide_resnet import WideResNet
from polyptych.balancers._engine import check_branches
from polyptych.decoders.heads import Heads
from polyptych.encoders._base import CATALOG, Encoder
from polyptych.encoders.searched import Searched
from polyptych.encoders.shared import Shared
from polyptych.errors import InputError
from polyptych.networks import Network
from polyptych.profiling.operators import count
from polyptych.record import decode, encode
from polyptych.search import compile, extract

TASKS = ("a", "b", "c")
BACKBONES = {"resnet": Timm.Config(model="test_resnet"), "vit": Timm.Config(model="test_vit"),
             "hrnet": Timm.Config(model="hrnet_w18_small_v2"), "segnet": SegNet.Config(width=4, bottom_width=6),
             "wide": WideResNet.Config(depth=10, width=1)}
backbones = pytest.mark.parametrize("backbone", [
    pytest.param(config, id=name, marks=[pytest.mark.slow] * (name in ("hrnet", "vit")))
    for name, config in BACKBONES.items()])


@cache
def policy_of(backbone, seed=1, space="tree", tasks=TASKS, **options):
    return compile(backbone.build(), tasks, space=space, **options).space.draw(Random(seed))


def searched(policy, backbone, tasks=TASKS, seed=0):
    torch.manual_seed(seed)
    config = Searched.Config(policy=json.dumps(policy.encode()) if policy is not None else "")
    return config.build(backbone=backbone, tasks=tasks)


def images(batch=2, height=64, width=96):
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


@backbones
@torch.no_grad()
def test_shares_everything_without_a_policy(backbone):
    torch.manual_seed(0)
    shared = Shared.Config().build(backbone=backbone, tasks=TASKS).eval()
    encoder = searched(None, backbone).eval()
    assert encoder.spec == shared.spec and encoder.multiple == shared.multiple
    for size in ((64, 96), (97, 70)):
        size = tuple(-(-n // encoder.multiple) * encoder.multiple for n in size)
        x = images(2, *size)
        expected, got = shared(x), encoder(x)
        assert all(torch.equal(a, b) for t in TASKS for a, b in zip(expected[t].maps, got[t].maps, strict=True))
        assert len(got.shared) == len(expected.shared)
    names = {n.removeprefix("network.body.") for n, _ in encoder.named_parameters()}
    assert names == {n.removeprefix("backbone.") for n, _ in shared.named_parameters()}


@pytest.mark.parametrize(("space", "backbone"), [
    pytest.param(space, config, id=f"{space}-{name}", marks=(
        [pytest.mark.slow, *[pytest.mark.grid] * (name not in ("hrnet", "vit"))]
        if name in ("hrnet", "vit") or (space == "partition" and name != "resnet") else []))
    for name, config in BACKBONES.items() for space in ("tree", "partition")])
def test_the_cut_holds_all_that_tasks_read(backbone, space):
    """Gradients through the cut are all that the trunk gets, and no tensor of the cut is made of another."""
    policy = policy_of(backbone, 3, space)
    encoder = searched(policy, backbone)
    features = encoder(images())
    check_branches(features.shared)
    supermodel = compile(backbone.build(), TASKS, space=space)
    plan = supermodel.plan(policy)
    trunk_targets = {str(plan.steps[i].node.target) for i in plan.trunk if plan.steps[i].bank is not None}
    torch.manual_seed(3)
    loss = sum((x * torch.randn_like(x)).sum() for own in features.values() for x in own.maps)
    everything = dict(encoder.network.body.named_parameters())
    trunk = {n: p for n, p in everything.items() if any(n == t or n.startswith(f"{t}.") for t in trunk_targets)}
    assert bool(trunk) == bool(features.shared)
    if not trunk:
        return
    at_cut = torch.autograd.grad(loss, features.shared, retain_graph=True)
    through = torch.autograd.grad(features.shared, list(trunk.values()), at_cut, retain_graph=True, allow_unused=True)
    whole = torch.autograd.grad(loss, list(trunk.values()))
    used_again = {str(step.node.target) for i, step in enumerate(plan.steps) if i not in plan.trunk}
    scale = max(float(g.abs().max()) for g in whole)
    for name, a, b in zip(trunk, through, whole, strict=True):
        if not any(name == t or name.startswith(f"{t}.") for t in used_again):
            assert torch.allclose(a, b, atol=1e-5 * scale), name


def test_the_cut_of_a_policy_without_a_trunk_is_empty():
    backbone = BACKBONES["resnet"]
    policy = compile(backbone.build(), TASKS).space.all_own()
    assert searched(policy, backbone)(images()).shared == ()


@torch.no_grad()
def test_is_what_was_extracted():
    backbone = BACKBONES["resnet"]
    policy = policy_of(backbone)
    torch.manual_seed(0)
    supermodel = compile(backbone.build(), TASKS)
    supermodel.materialize([policy])
    for parameter in supermodel.banks.copies.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    compact = extract(supermodel, policy).eval()
    encoder = searched(policy, backbone, seed=9)
    encoder.network.load_state_dict(compact.state_dict())
    got, expected, same = encoder.eval()(images()), compact(images()), supermodel.eval()(images(), policy)
    for task in TASKS:
        for a, b, c in zip(got[task].maps, expected[task].maps, same[task].maps, strict=True):
            assert torch.equal(a, b) and torch.equal(b, c)
    assert len(got.shared) == len(same.shared) > 0


@torch.no_grad()
def test_tasks_in_another_order():
    backbone = BACKBONES["resnet"]
    policy = policy_of(backbone, tasks=("a", "b"))
    one, other = searched(policy, backbone, ("a", "b")), searched(policy, backbone, ("b", "a"))
    other.load_state_dict(one.state_dict())
    got, turned = one.eval()(images()), other.eval()(images())
    assert list(turned) == ["b", "a"]
    assert all(torch.equal(x, y) for t in got for x, y in zip(got[t].maps, turned[t].maps, strict=True))
    with pytest.raises(InputError, match=r"choices for a, b; needs choices for a, c"):
        searched(policy, backbone, ("a", "c"))


def test_a_policy_of_another_backbone_is_refused():
    policy = policy_of(BACKBONES["resnet"])
    with pytest.raises(InputError, match=r"units of another network.*use the backbone"):
        searched(policy, BACKBONES["wide"])


def test_the_policy_travels_in_run_json(tmp_path):
    """The file is read once; its text is the option's value from then on."""
    policy = policy_of(BACKBONES["resnet"])
    policy.write(tmp_path / "policy.json")
    config = Searched.Config(policy=str(tmp_path / "policy.json"))
    (tmp_path / "policy.json").unlink()
    again = decode(Encoder.Config, json.loads(json.dumps(encode(config))), "run.json")
    assert again == config and again.name == "searched"
    again.build(backbone=BACKBONES["resnet"], tasks=TASKS)
    with pytest.raises(InputError, match="no such file"):
        Searched.Config(policy=str(tmp_path / "policy.json"))
    with pytest.raises(InputError, match="not JSON"):
        Searched.Config(policy="{").build(backbone=BACKBONES["resnet"], tasks=TASKS)


@pytest.mark.parametrize("how", [{"granularity": "op"}, {"granularity": "stage"}, {"whole": ("stages.2",)}])
def test_how_units_were_found_is_part_of_the_policy(how):
    backbone = BACKBONES["resnet"]
    policy = policy_of(backbone, **how)
    assert searched(policy, backbone)(images()).keys() == set(TASKS)


def test_multiply_adds_and_parameters():
    backbone = BACKBONES["resnet"]
    x = images(1)

    def cost(encoder):
        return count(encoder, lambda: encoder(x))[0].total, sum(p.numel() for p in encoder.parameters())

    space = compile(backbone.build(), TASKS).space
    operations, parameters = cost(Shared.Config().build(backbone=backbone, tasks=TASKS))
    assert cost(searched(None, backbone)) == cost(searched(space.all_shared(), backbone)) == (operations, parameters)
    assert cost(searched(space.all_own(), backbone)) == (3 * operations, 3 * parameters)
    half = cost(searched(space.bottom_shared(len(space.units) // 2), backbone))
    assert operations < half[0] < 3 * operations and parameters < half[1] < 3 * parameters


@pytest.mark.parametrize("decoder", ["heads", "pad_net", "mti_net"])
def test_goes_with_any_decoder(decoder):
    from polyptych.decoders._base import CATALOG as DECODERS

    policy = policy_of(BACKBONES["resnet"], tasks=("semseg", "depth"))
    network = Network.build(BACKBONES["resnet"], Searched.Config(policy=json.dumps(policy.encode())),
                            DECODERS.load(decoder).Config(), {"semseg": 4, "depth": 1}).train()
    output = network(torch.rand(2, 3, 70, 90))
    sum(x.square().mean() for x in [*output.final.values(), *(
        x for extra in output.auxiliary for x in extra.prediction.values())]).backward()
    assert all(p.grad is not None for p in network.parameters())


@torch.no_grad()
def test_export():
    policy = policy_of(BACKBONES["resnet"], tasks=("a", "b"))
    network = Network.build(BACKBONES["resnet"], Searched.Config(policy=json.dumps(policy.encode())), Heads.Config(),
                            {"a": 2, "b": 1}).eval()

    class Final(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x).final

    x = torch.rand(1, 3, 64, 96)
    program = torch.export.export(Final(), (x,))
    assert all(torch.equal(y, network(x).final[t]) for t, y in program.module()(x).items())


def test_it_is_in_the_catalog():
    assert "searched" in CATALOG.names() and "AutoMTL" in CATALOG.describe("searched").source
