"""LoRA shared by all tasks: what it adapts, what learns, and merging."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from polyptych.backbones.timm import Timm
from polyptych.decoders.heads import Heads
from polyptych.encoders._low_rank import LowRankLinear, merge
from polyptych.encoders.lora import LoRA
from polyptych.errors import InputError
from polyptych.networks import Network
from polyptych.optim import Optimizer

VIT = Timm.Config(model="test_vit")
EVA = Timm.Config(model="eva02_tiny_patch14_224", architecture="embed_dim=48, num_heads=2, depth=4")
SWIN = Timm.Config(model="swin_tiny_patch4_window7_224", architecture="embed_dim=12, depths=(2, 2, 2, 2), "
                   "num_heads=(1, 2, 4, 8)")
CHANNELS = {"a": 2, "b": 1}


def build(backbone=VIT, **options) -> Network:
    torch.manual_seed(0)
    return Network.build(backbone, LoRA.Config(**options), Heads.Config(), CHANNELS)


def adapted(network) -> list[str]:
    return [module.linear.name_in_timm for module in network.modules() if isinstance(module, LowRankLinear)]


def learned(network) -> Network:
    for name, p in network.named_parameters():
        if name.endswith("_B"):
            nn.init.normal_(p, std=0.1)
    return network


def test_names_as_in_peft():
    """A list names the last parts, a pattern the whole."""
    depth = 6
    assert adapted(build(targets=("qkv",))) == [f"blocks.{i}.attn.qkv" for i in range(depth)]
    assert adapted(build(targets=("attn.qkv", "fc1"))) == [f"blocks.{i}.{n}" for i in range(depth)
                                                          for n in ("attn.qkv", "mlp.fc1")]
    assert adapted(build(pattern=r"blocks\.[45]\.attn\.(qkv|proj)")) == [
        f"blocks.{i}.attn.{n}" for i in (4, 5) for n in ("qkv", "proj")]
    assert adapted(build(pattern=r".*\.mlp\.fc\d")) == [f"blocks.{i}.mlp.{n}" for i in range(depth)
                                                        for n in ("fc1", "fc2")]
    assert "layers.0.blocks.0.attn.qkv" in adapted(build(SWIN))


@pytest.mark.parametrize(("options", "scale"), [
    ({"rank": 4, "alpha": 8.0}, 2.0), ({"rank": 16, "alpha": 8.0}, 0.5),
    ({"rank": 16, "alpha": 8.0, "rslora": True}, 2.0)])
def test_scale_as_in_peft(options, scale):
    assert {m.scale for m in build(**options).modules() if isinstance(m, LowRankLinear)} == {scale}


def test_the_update():
    layer = learned(nn.ModuleDict({"x": LowRankLinear(nn.Linear(5, 7), 2, 3.0)}))["x"].eval()
    x = torch.randn(4, 5)
    expected = x @ (layer.linear.weight + 3.0 * layer.lora_shared_B @ layer.lora_shared_A).T + layer.linear.bias
    assert torch.allclose(layer(x), expected, atol=1e-6) and torch.allclose(layer.merged()(x), expected, atol=1e-6)


@pytest.mark.parametrize("backbone", [VIT, EVA, SWIN], ids=["vit", "eva", "swin"])
@torch.no_grad()
def test_at_first_nothing_changes_and_merging_changes_nothing(backbone):
    network = build(backbone).eval()
    plain = build(backbone).eval()
    plain.encoder.backbone = merge_free(plain.encoder.backbone)
    image = torch.rand(1, 3, 64, 96)
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(network.encoder(image)["a"].maps,
                                                               plain.encoder(image)["a"].maps, strict=True))
    before = learned(network)(image).final
    merged = copy.deepcopy(network)
    assert merge(merged) == len(adapted(network)) and not adapted(merged)
    assert all(torch.allclose(x, merged(image).final[task], atol=1e-4) for task, x in before.items())
    assert any(not torch.allclose(x, plain(image).final[task], atol=1e-4) for task, x in before.items())


def merge_free(backbone):
    for parent in list(backbone.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LowRankLinear):
                setattr(parent, name, child.linear)
    return backbone


@pytest.mark.parametrize(("train", "more"), [("nothing", ()), ("norms", ("norm",)), ("biases", ("bias",))])
def test_what_learns(train, more):
    network = build(train=train)
    free = {name for name, p in network.encoder.named_parameters() if p.requires_grad}
    assert all("lora_" in name or "pyramid" in name or any(word in name for word in more) for name in free)
    assert all(any(word in name for name in free) for word in more) and any("lora_" in name for name in free)
    sum(x.square().mean() for x in network.train()(torch.rand(2, 3, 64, 64)).final.values()).backward()
    assert all(p.grad is None for p in network.parameters() if not p.requires_grad)
    assert [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None] == []


def test_rates_of_adapters_and_of_the_rest():
    network = build()
    groups = Optimizer(learning_rate=1.0, backbone_scale=0.1, adapter_scale=2.0, decoder_scale=3.0).groups(network)
    rates = {id(p): g["peak"] for g in groups for p in g["params"]}
    of = {"lora": set(), "pyramid": set(), "decoder": set()}
    for name, p in network.named_parameters():
        if p.requires_grad:
            of["lora" if "lora_" in name else name.split(".")[0 if name.startswith("decoder") else 2]].add(rates[id(p)])
    assert of == {"lora": {2.0}, "pyramid": {0.1}, "decoder": {3.0}}


@pytest.mark.parametrize(("options", "where"), [
    ({"rank": 0}, "encoder.rank"), ({"dropout": 1.5}, "encoder.dropout"), ({"targets": ("x",)}, "encoder.targets"),
    ({"pattern": "("}, "encoder.pattern"), ({"pattern": "nothing"}, "encoder.pattern")])
def test_refusals(options, where):
    with pytest.raises(InputError, match=where):
        build(**options)
