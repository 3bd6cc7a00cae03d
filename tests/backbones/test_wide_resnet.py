"""The wide residual network against its equations written out, with the published counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyptych.backbones.wide_resnet import WideResNet
from polyptych.datasets._decathlon.domains import DOMAINS
from polyptych.decoders.heads import Heads
from polyptych.encoders.shared import Shared
from polyptych.errors import InputError
from polyptych.networks import Network
from polyptych.tasks.classification import Classification
from polyptych.types import FeatureSpec, LabelInfo
from trying_encoders import names, network_or_skip

SMALL = WideResNet.Config(depth=16, width=1)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def built() -> WideResNet:
    torch.manual_seed(0)
    network = SMALL.build().double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.weight.data, module.bias.data):
                values.normal_()
            module.running_var.uniform_(0.5, 2)
    return network


def plain(network: WideResNet, image: Tensor) -> list[Tensor]:
    """Two blocks in each of three groups, from the parameters in their order."""
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    layer = iter(layers)

    def active(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        normal = (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
        return (normal * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)

    def convolved(x: Tensor, conv: nn.Conv2d, stride: int = 1) -> Tensor:
        return F.conv2d(x, conv.weight, conv.bias, stride, padding=conv.weight.shape[-1] // 2)

    x = convolved(image, next(layer))
    maps = [x]
    for _ in range(3):
        for stride in (2, 1):
            inside = convolved(active(x, next(layer)), next(layer))
            change = convolved(active(inside, next(layer)), next(layer), stride)
            x = change + (convolved(x, next(layer), 2) if stride == 2 else x)
        maps.append(x)
    maps[-1] = active(x, next(layer))
    assert next(layer, None) is None
    return maps


@torch.no_grad()
def test_as_written_out():
    network, image = built(), torch.rand(2, 3, 40, 24, dtype=torch.float64)
    maps = network(image).maps
    for got, expected in zip(maps, plain(network, image), strict=True):
        assert torch.allclose(got, expected, atol=1e-9)
    assert [tuple(x.shape[1:]) for x in maps] == [(16, 40, 24), (16, 20, 12), (32, 10, 6), (64, 5, 3)]


def test_wrn_28_4():
    network = WideResNet.Config().build()
    assert count(network) == 5_850_528
    assert network.spec == FeatureSpec((16, 64, 128, 256), (1, 2, 4, 8))
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) == 28 - 3  # the depth counts the three shortcuts too
    assert [m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)] == [0.1] * 24 + [0.9]
    assert [tuple(x.shape[1:]) for x in network(torch.rand(2, 3, 72, 72)).maps] == [
        (16, 72, 72), (64, 36, 36), (128, 18, 18), (256, 9, 9)]


def test_decathlon_heads_are_pooling_and_a_linear_layer():
    """Published: linear layers of 803,896 parameters. The task averages the map that the head makes."""
    channels = {name: domain.classes for name, domain in DOMAINS.items()}
    network = Network.build(WideResNet.Config(), Shared.Config(), Heads.Config(head="linear"), channels).eval()
    assert count(network.decoder) == 803_896
    image = torch.rand(2, 3, 72, 72)
    with torch.no_grad():
        logits = network(image).final["dtd"]
        pooled = network.encoder(network.normalize(image))["dtd"].maps[-1].mean((2, 3))
    head = network.decoder.heads["dtd"].predict
    expected = F.linear(pooled, head.weight[:, :, 0, 0], head.bias)
    task = Classification.Config().build(labels=LabelInfo(classes=tuple(map(str, range(47)))))
    assert torch.allclose(task.decode(logits), expected.log_softmax(1), atol=1e-5)
    target = torch.tensor([3, 46])
    with torch.no_grad():
        loss = task.loss(logits, target, torch.ones(2, 72, 72, dtype=torch.bool))
        reference = F.cross_entropy(expected, target)
    assert float(loss.mean()) == pytest.approx(float(reference), abs=1e-5)


@torch.no_grad()
def test_no_stage_writes_into_the_state_that_enters_it():
    network = built()
    states = network.run(torch.rand(1, 3, 32, 32, dtype=torch.float64))
    before = [state.clone() for state in states]
    for stage, state in zip(network.stages[1:], states[:-1], strict=True):
        stage(state)
    assert all(torch.equal(state, x) for state, x in zip(states, before, strict=True))


@torch.no_grad()
def test_attention_sees_every_map():
    network, image = built(), torch.rand(1, 3, 24, 40, dtype=torch.float64)
    pairs, maps = network.attention_maps(image), network(image).maps
    points = network.attention.points
    assert [p.entry + p.exit + p.strides for p in points] == [(16, 16, 1), (16, 16, 2), (32, 32, 4), (64, 64, 8)]
    for (entry, end), x in zip(pairs, maps, strict=True):
        assert torch.equal(entry[0], x) and torch.equal(end[0], x)
    assert network.attention.finish
    attended = network.attended_features([end for _, end in pairs])
    assert all(torch.equal(a, b) for a, b in zip(attended.maps, maps, strict=True))


def test_layout_precision_and_gradients():
    network = SMALL.build().eval()
    image = torch.rand(2, 3, 40, 72)
    expected = network(image).maps[-1]
    last = network.to(memory_format=torch.channels_last)(image.contiguous(memory_format=torch.channels_last)).maps[-1]
    assert torch.allclose(last, expected, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert network(image).maps[-1].isfinite().all()
    sum(x.square().sum() for x in network.train()(image).maps).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("encoder", names())
def test_every_encoder(encoder):
    torch.manual_seed(0)
    network = network_or_skip(SMALL, encoder, Heads.Config(head="linear"), {"a": 3, "b": 1}).train()
    final = network(torch.rand(2, 3, *(40, 56))).final
    assert {name: tuple(x.shape) for name, x in final.items()} == {"a": (2, 3, *(40, 56)), "b": (2, 1, *(40, 56))}
    sum((x * torch.randn_like(x)).mean() for x in final.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(("options", "said"), [
    ({"depth": 20}, "backbone.depth: got 20; needs 10, 16, 22, 28 or another 6 n + 4"),
    ({"depth": 4}, "backbone.depth: got 4"), ({"depth": -2}, "backbone.depth: got -2"),
    ({"width": 0}, "backbone.width: got 0"),
])
def test_refusals(options, said):
    with pytest.raises(InputError) as error:
        WideResNet.Config(**options).build()
    assert said in str(error.value)
