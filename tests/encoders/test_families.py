"""Every encoder on every family of timm: two sizes, gradients for all parameters, stages that come apart.

The fast set has each encoder on one of four kinds of networks in turn, the grid on two, the slow one all pairs. (Each
encoder on the network that suits it is in ``tests/conformance``.)
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polyptych.backbones._attention import StageTrunk
from polyptych.backbones._halves import halve
from polyptych.backbones._states import maps_of, probe, with_maps
from polyptych.backbones.timm import Timm
from polyptych.balancers._engine import check_branches
from polyptych.decoders.heads import Heads
from polyptych.encoders._base import CATALOG
from trying_encoders import network_or_skip

FAST = ["test_resnet", "test_convnext", "test_vit", "mobilenetv3_small_050"]
SLOW = ["resnet18", "resnetv2_18", "convnextv2_atto", "efficientnet_b0", "test_efficientnet", "regnety_002",
        "densenet121", "hrnet_w18_small", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256",
        "vit_tiny_patch16_224", "deit3_small_patch16_224", "vit_small_patch16_dinov3", "twins_pcpvt_small",
        "mobilevit_xxs", "mobilenetv4_conv_small", "dpn68", "focalnet_tiny_srf", "pvt_v2_b0", "xception41",
        "test_maxvit", "vgg11", "ghostnet_050", "cspresnet50", "repvgg_a0", "edgenext_xx_small", "poolformer_s12"]
WHOLE = {"twins_pcpvt_small", "xception41"}  # families that cannot be cut
families = pytest.mark.parametrize("model", [*FAST, *(pytest.param(m, marks=pytest.mark.slow) for m in SLOW)])
PAIRS = [(encoder, model) for encoder in CATALOG.names() for model in (*FAST, *SLOW)]
QUICK, GRID = ({(encoder, FAST[(number + more) % 4]) for number, encoder in enumerate(CATALOG.names())}
               for more in (0, 2))
MARKS = {pair: [] if pair in QUICK else [pytest.mark.grid if pair in GRID else pytest.mark.slow] for pair in PAIRS}
pairs = pytest.mark.parametrize(("encoder", "model"), [
    pytest.param(*pair, marks=marks) for pair, marks in MARKS.items()])


@pairs
def test_two_sizes_and_every_parameter_learns(encoder, model):
    torch.manual_seed(0)
    options = {"private": 0} if encoder == "split" and model in WHOLE else {}
    network = network_or_skip(Timm.Config(model=model), encoder, Heads.Config(width=8), {"a": 2, "b": 1},
                              **options).train()
    for size in ((64, 96), (97, 70)):
        output = network(torch.rand(2, 3, *size))
        assert {task: tuple(x.shape) for task, x in output.final.items()} == {"a": (2, 2, *size), "b": (2, 1, *size)}
        check_branches(output.shared)
    sum((x * torch.randn_like(x)).mean() for x in output.final.values()).backward()
    learning = {name: p for name, p in network.named_parameters() if p.requires_grad
                and not (encoder == "mtlora" and "fc2.lora_shared_" in name)}  # the last one only feeds what ends there
    assert [name for name, p in learning.items() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in learning.values())


@families
@torch.no_grad()
def test_cutting_stages_changes_nothing(model):
    torch.manual_seed(0)
    backbone = Timm.Config(model=model).build().eval()
    image = torch.rand(2, 3, 2 * backbone.multiple, backbone.multiple)
    expected = backbone(image).maps
    trunk = StageTrunk(backbone)
    pairs = trunk.attention_maps(image)
    for (entry, end), point in zip(pairs, trunk.attention.points, strict=True):
        assert tuple(x.shape[1] for x in entry) == point.entry and tuple(x.shape[1] for x in end) == point.exit
        assert [x.shape[2:] for x in entry] == [x.shape[2:] for x in end]
        assert tuple(image.shape[2] // x.shape[2] for x in end) == point.strides
    for maps in (backbone(image).maps, trunk.attended_features([end for _, end in pairs]).maps):
        assert all(torch.equal(x, y) for x, y in zip(expected, maps, strict=True))


@pytest.mark.parametrize(("model", "halved"), [
    ("resnet18", {1, 2, 3, 4}), ("test_convnext", {2, 3, 4}), ("hrnet_w18_small_v2", {1, 3, 4}),
    ("regnety_002", {3, 4}),
    pytest.param("swin_tiny_patch4_window7_224", {1, 2, 3, 4}, marks=pytest.mark.slow),
    pytest.param("twins_pcpvt_small", set(), marks=pytest.mark.slow)])
def test_which_stages_come_apart(model, halved):
    assert StageTrunk(Timm.Config(model=model).build()).halved == halved


@torch.no_grad()
def test_the_last_block_is_what_is_taken_off():
    backbone = Timm.Config().build().eval()
    states = probe(backbone)[1:]
    blocks = list(backbone.stages[2])
    halves = halve(backbone.stages[2], states[1])
    assert list(halves[0]) == blocks[:-1] and halves[1] is blocks[-1]


def test_a_stage_that_does_more_than_its_blocks_stays_whole():
    class Summed(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))

        def forward(self, x):
            return x + self.blocks(x)

    class Strided(nn.Sequential):
        pass

    x = torch.rand(1, 3, 8, 8)
    assert halve(Summed().eval(), x) is None  # blocks apart are not the whole
    assert halve(Strided(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 2, 2)).eval(), x) is None  # of different sizes
    assert halve(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()).eval(), x) is None  # the last block learns nothing
    stage = Summed().eval()
    expected = stage(x)
    halve(stage, x)
    assert torch.equal(stage(x), expected)


def test_probing_leaves_no_trace():
    backbone = Timm.Config(model="test_resnet").build()
    before, numbers = {k: v.clone() for k, v in backbone.state_dict().items()}, torch.get_rng_state()
    probe(backbone)
    assert backbone.training and torch.equal(torch.get_rng_state(), numbers)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_states_of_any_structure():
    one, two, whole = torch.rand(1, 2, 3, 3), torch.rand(1, 4, 3, 3), torch.zeros(1, 2, 3, 3, dtype=torch.int64)
    state = [one, (two, whole, (3, 3))]
    assert [id(x) for x in maps_of(state)] == [id(one), id(two)]
    new = with_maps(state, [-one])
    assert torch.equal(new[0], -one) and new[1][0] is two and new[1][1] is whole and new[1][2] == (3, 3)
