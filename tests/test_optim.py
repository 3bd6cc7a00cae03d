"""Optimizers and schedules."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from polyptych.backbones.timm import Timm
from polyptych.decoders.ema_net import EMANet
from polyptych.decoders.heads import Heads
from polyptych.decoders.pap_net import PAPNet
from polyptych.devices import shapes_only
from polyptych.encoders.shared import Shared
from polyptych.networks import Network as RealNetwork
from polyptych.optim import Optimizer, Schedule, decays, set_learning_rate

KINDS = ("cosine", "polynomial", "warm_restarts", "step", "constant")


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.decoder = nn.Conv2d(4, 1, 1)


@given(st.sampled_from(KINDS), st.integers(1, 500), st.integers(0, 50), st.floats(0, 0.5), st.data())
def test_a_share_is_between_zero_and_one(kind, steps, warmup, final, data) -> None:
    schedule = Schedule(kind=kind, warmup=warmup, final=final, period=17)
    step = data.draw(st.integers(0, steps - 1))
    assert 0 <= schedule.share(step, steps) <= 1


def test_closed_forms() -> None:
    assert Schedule(kind="cosine").share(50, 100) == pytest.approx(0.5)
    assert Schedule(kind="cosine", final=0.1).share(100, 100) == pytest.approx(0.1)
    assert Schedule(kind="polynomial", power=0.9).share(25, 100) == pytest.approx(0.75**0.9)
    assert Schedule(kind="step", period=100, factor=2).share(250, 1000) == 0.25
    restarts = Schedule(kind="warm_restarts", period=10, factor=2)
    assert [restarts.share(s, 70) for s in (0, 10, 30)] == [1.0, 1.0, 1.0]  # cycles of 10, 20 and 40 steps
    assert restarts.share(20, 70) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


def test_warm_up_rises_linearly_to_the_peak() -> None:
    schedule = Schedule(kind="constant", warmup=4)
    assert [schedule.share(s, 100) for s in range(6)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_groups_cover_every_parameter_once() -> None:
    network, balancer = Network(), nn.ParameterList([nn.Parameter(torch.zeros(3))])
    optimizer = Optimizer(learning_rate=0.1, backbone_scale=0.1, weight_decay=0.5).build(network, balancer)
    owners = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(owners) == len(list(network.parameters())) + 1
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(owners)
    conv, norm, head = network.encoder[0].weight, network.encoder[1].weight, network.decoder.weight
    assert owners[id(conv)]["peak"] == pytest.approx(0.01)
    assert owners[id(conv)]["weight_decay"] == 0.5
    assert owners[id(norm)]["weight_decay"] == 0.0
    assert owners[id(head)]["peak"] == pytest.approx(0.1)
    assert owners[id(balancer[0])]["weight_decay"] == 0.0


def test_factors_of_modules_multiply_down_to_their_parameters() -> None:
    network = Network()
    network.encoder.learning_rate_factor, network.encoder[0].learning_rate_factor = 10.0, 3.0
    network.encoder[0].weight_decay_factor = 0.5
    optimizer = Optimizer(learning_rate=0.1, backbone_scale=0.1, weight_decay=0.5).build(network, nn.Module())
    owners = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    conv, norm, head = (owners[id(p)] for p in (network.encoder[0].weight, network.encoder[1].weight,
                                                network.decoder.weight))
    assert [group["peak"] for group in (conv, norm, head)] == pytest.approx([0.3, 0.1, 0.1])
    assert [group["weight_decay"] for group in (conv, norm, head)] == [0.25, 0.0, 0.5]
    assert set_learning_rate(optimizer, 0.5) == pytest.approx(0.05)  # the run's own, not the largest


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_learning_rate_follows_the_share(kind: str) -> None:
    optimizer = Optimizer(kind=kind, learning_rate=0.1, backbone_scale=0.5).build(Network(), nn.Module())
    assert set_learning_rate(optimizer, 0.2) == pytest.approx(0.02)
    assert sorted({round(group["lr"], 6) for group in optimizer.param_groups}) == [0.01, 0.02]
    assert isinstance(optimizer, {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}[kind])


@pytest.mark.parametrize("model", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "test_vit",
                                   "maxvit_tiny_tf_224", "levit_128s"])
def test_what_timm_does_not_decay_is_not_decayed(model) -> None:
    with shapes_only():
        whole = timm.create_model(model)
    named = tuple(whole.no_weight_decay())
    kept = [name for name, p in whole.named_parameters() if not decays(name, p)]
    assert all(name in kept for name, p in whole.named_parameters() if p.ndim <= 1)
    assert all(name in kept for name, _ in whole.named_parameters() if name.startswith(named))
    tables = [name for name, p in whole.named_parameters() if name in kept and p.ndim > 1]
    assert tables and not any(name.endswith(("qkv.weight", "fc1.weight", "proj.weight")) for name in kept)


def test_tables_are_decayed_with_everything_only() -> None:
    network = RealNetwork.build(Timm.Config(model="test_vit"), Shared.Config(), Heads.Config(), {"depth": 1})

    def decay(optimizer: Optimizer) -> set[float]:
        groups = optimizer.build(network, nn.Module()).param_groups
        table = network.encoder.backbone.stages[0].model.pos_embed
        return {group["weight_decay"] for group in groups if any(p is table for p in group["params"])}

    assert decay(Optimizer()) == {0.0} and decay(Optimizer(decay_everything=True)) == {0.05}


def test_what_mixes_tasks_is_never_decayed() -> None:
    for decoder, name in ((EMANet.Config(learn_gamma=True, size=(64, 64)), "gamma"), (PAPNet.Config(), "mixture")):
        network = RealNetwork.build(Timm.Config(model="test_resnet"), Shared.Config(), decoder, {"a": 1, "b": 1})
        groups = Optimizer(decay_everything=True).build(network, nn.Module()).param_groups
        decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
        mine = [decay[id(p)] for full, p in network.named_parameters() if full.rpartition(".")[2] == name]
        assert mine == [0.0] and set(decay.values()) == {0.0, 0.05}
