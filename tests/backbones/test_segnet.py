"""SegNet against its equations written as plain loops, at any size, with the published counts."""

from __future__ import annotations

import math
import subprocess
import sys
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polyptych.backbones.segnet import Pooled, SegNet
from polyptych.decoders.heads import Heads
from polyptych.devices import shapes_only
from polyptych.encoders.shared import Shared
from polyptych.encoders.single import Single
from polyptych.errors import InputError
from polyptych.networks import Network
from trying_encoders import names, network_or_skip

NYUV2 = {"semseg": 13, "depth": 1, "normals": 3}
SMALL = SegNet.Config(width=2, bottom_width=6)
PUBLISHED = Heads.Config(head="linear", width=64)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@cache
def small() -> SegNet:
    """For many examples; none changes it."""
    return SMALL.build().eval()


def built(config: SegNet.Config = SMALL) -> SegNet:
    """In evaluation mode and double precision, with batch statistics that differ from 0 and 1."""
    torch.manual_seed(0)
    network = config.build().double().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.weight.data, module.bias.data):
                values.normal_()
            module.running_var.uniform_(0.5, 2)
    return network


def pool(x: Tensor) -> tuple[Tensor, list[tuple[int, ...]]]:
    """The maximum of every 2x2 cell (smaller at the lower and right border), and where each one came from."""
    b, c, h, w = x.shape
    pooled, places = x.new_zeros(b, c, math.ceil(h / 2), math.ceil(w / 2)), []
    for n in range(b):
        for k in range(c):
            for i in range(0, h, 2):
                for j in range(0, w, 2):
                    cells = [(i + di, j + dj) for di in (0, 1) for dj in (0, 1) if i + di < h and j + dj < w]
                    best = max(cells, key=lambda cell: float(x[n, k, cell[0], cell[1]]))
                    pooled[n, k, i // 2, j // 2] = x[n, k, best[0], best[1]]
                    places.append((n, k, i // 2, j // 2, *best))
    return pooled, places


def plain(network: SegNet, image: Tensor) -> tuple[list[Tensor], Tensor]:
    """The map after every stage, and the pyramid's, from the parameters alone."""
    layers = [[m for m in stage.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)] for stage in network.stages]
    remembered, x, maps = [], image, []
    for number, stage in enumerate(layers):
        if number >= 5:
            places, size = remembered.pop()
            unpooled = x.new_zeros(*x.shape[:2], *size)
            for n, k, i, j, row, column in places:
                unpooled[n, k, row, column] = x[n, k, i, j]
            x = unpooled
        for conv, norm in zip(stage[::2], stage[1::2], strict=True):
            x = F.conv2d(x, conv.weight, conv.bias, padding=1)
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            x = ((x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
        if number < 5:
            size = x.shape[-2:]
            x, places = pool(x)
            remembered.append((places, size))
        maps.append(x)
    return maps, x


@pytest.mark.parametrize("size", [(32, 32), (21, 13)])
@torch.no_grad()
def test_as_written_out(size):
    network = built()
    image = torch.rand(2, 3, *size, dtype=torch.float64)
    maps, last = plain(network, image)
    states = network.run(image)
    for state, expected in zip(states, maps, strict=True):
        assert torch.allclose(state.map, expected, atol=1e-9)
    assert torch.allclose(network(image).maps[0], last, atol=1e-9) and last.abs().max() > 0.1


@pytest.mark.parametrize(("options", "head_parts", "published"), [
    ({}, (37_773,), 24_981_069), ({}, (36_993,), 24_980_289), ({}, (37_123,), 24_980_419),
    # three heads, and three numbers of uncertainty weighting that the authors count
    ({}, (37_773, 36_993, 37_123, 3), 25_055_188),
    ({"bottom_width": 1024}, (37_773, 36_993, 37_123, 3), 43_934_164),
    ({"doubled": True}, (37_773, 36_993, 37_123, 3), 50_807_764),
])
@shapes_only()
def test_published_counts(options, head_parts, published):
    assert count(SegNet.Config(**options).build()) + sum(head_parts) == published


@shapes_only()
def test_published_counts_of_networks():
    shared = Network.build(SegNet.Config(), Shared.Config(), PUBLISHED, NYUV2)
    assert count(shared) + 3 == 25_055_188
    assert {task: count(head) for task, head in shared.decoder.heads.items()} == {
        "semseg": 37_773, "depth": 36_993, "normals": 37_123}
    single = Network.build(SegNet.Config(), Single.Config(), PUBLISHED, NYUV2)
    assert count(single) == 24_981_069 + 24_980_289 + 24_980_419


def test_a_head_is_linear():
    head = PUBLISHED.build(features=dict.fromkeys(["a"], SegNet.Config(width=2).build().spec), channels={"a": 3})
    x, y = torch.rand(2, 1, 2, 9, 7).unbind()
    predict = head.heads["a"]
    assert torch.allclose(predict(x + 2 * y) - predict(0 * x), predict(x) + 2 * predict(y) - 3 * predict(0 * x),
                          atol=1e-5)


def test_stages_are_vgg16_and_its_mirror_image():
    network = SegNet.Config().build()
    convolutions = [[(m.in_channels, m.out_channels) for m in stage.modules() if isinstance(m, nn.Conv2d)]
                    for stage in network.stages]
    assert [len(stage) for stage in convolutions] == [2, 2, 3, 3, 3, 3, 3, 3, 2, 2]
    assert [(stage[0][0], stage[-1][1]) for stage in convolutions] == [
        (3, 64), (64, 128), (128, 256), (256, 512), (512, 512),
        (512, 512), (512, 256), (256, 128), (128, 64), (64, 64)]
    assert not any(m.bias.any() for m in network.modules() if isinstance(m, nn.Conv2d))
    weight = network.stages[3].first[0].weight  # Xavier: variance 2 / (fan in + fan out)
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (9 * (256 + 512))), rel=0.01)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
@torch.no_grad()
def test_any_size(height, width):
    network = small()
    states = network.run(torch.rand(1, 3, height, width))
    sizes = [(height, width)]
    for _ in range(5):
        sizes.append(tuple(math.ceil(n / 2) for n in sizes[-1]))
    assert [tuple(state.map.shape[-2:]) for state in states] == sizes[1:] + sizes[-2::-1]
    assert network(torch.rand(1, 3, height, width)).maps[0].shape == (1, 2, height, width)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_unpooling_undoes_pooling(height, width, seed):
    network = small()
    x = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    pooled = network.stages[0].leave(torch.zeros(0), x)
    back = network.stages[-1].enter(pooled)
    assert back.shape == x.shape and torch.equal(back[back != 0], x[back != 0])
    assert int((back != 0).sum()) == pooled.map.numel()  # one of every cell
    assert torch.equal(network.stages[0].leave(torch.zeros(0), back.where(back != 0, -9.0)).map, pooled.map)


@torch.no_grad()
def test_no_stage_writes_into_the_state_that_enters_it():
    network = built()
    states = network.run(torch.rand(1, 3, 40, 40, dtype=torch.float64))
    before = [state.map.clone() for state in states]
    for stage, state in zip(network.stages[1:], states[:-1], strict=True):
        stage(state)
    assert all(torch.equal(state.map, x) for state, x in zip(states, before, strict=True))
    assert [len(state.switches) for state in states] == [1, 2, 3, 4, 5, 4, 3, 2, 1, 0]


@torch.no_grad()
def test_attention_sees_the_maps_that_mtan_names():
    network = built()
    image = torch.rand(2, 3, 35, 50, dtype=torch.float64)
    pairs = network.attention_maps(image)
    for ([first], [last]), point in zip(pairs, network.attention.points, strict=True):
        assert (first.shape[1], last.shape[1]) == (point.entry[0], point.exit[0])
        assert first.shape[-2:] == last.shape[-2:] == tuple(math.ceil(n / point.strides[0]) for n in (35, 50))
    assert [point.bottom for point in network.attention.points] == [0, 0, 0, 0, 32, 0, 0, 0, 0, 0]
    assert torch.equal(pairs[0][0][0], network.stages[0].first(image))
    states = network.run(image)
    assert torch.equal(F.max_pool2d(pairs[2][1][0], 2, ceil_mode=True), states[2].map)
    assert torch.equal(pairs[-1][0][0], network.stages[-1].enter(states[-2]))
    attended = network.attended_features([last for _, last in pairs])
    assert torch.equal(attended.maps[0], network(image).maps[0])


@shapes_only()
def test_published_attention_points():
    points = SegNet.Config().build().attention.points
    assert [p.entry + p.exit for p in points] == [
        (64, 64), (128, 128), (256, 256), (512, 512), (512, 512),
        (512, 512), (512, 256), (256, 128), (128, 64), (64, 64)]


@shapes_only()
def test_published_count_of_a_dense_network():
    """Three networks with doubled inputs beside a shared one, whose last convolution makes 13 channels that nobody
    reads (in the authors' code), heads and three numbers of uncertainty weighting."""
    network = SegNet.Config().build()
    shared = count(network) - (9 * 64 * 64 + 3 * 64) + (9 * 64 * 13 + 3 * 13)
    network.double_inputs()
    assert 3 * count(network) + shared + 37_773 + 36_993 + 37_123 + 3 == 123_743_995


@torch.no_grad()
def test_doubled_inputs_concatenate_and_keep_their_own_switches():
    own, other = built(), built()
    own.double_inputs()
    own.double().eval()
    state = own.stages[0](torch.rand(1, 3, 37, 41, dtype=torch.float64))
    for stage, shared in zip(own.stages[1:], other.run(torch.rand(1, 3, 37, 41, dtype=torch.float64)), strict=False):
        entered = torch.cat([stage.enter(state), stage.enter(shared)], 1)
        expected = stage.leave(state, stage.rest(stage.first(entered)))
        state = stage((state, shared))
        assert isinstance(state, Pooled) and torch.equal(state.map, expected.map)
        assert all(torch.equal(a.places, b.places) for a, b in zip(state.switches, expected.switches, strict=True))
    assert state.map.shape == (1, 2, 37, 41) and not state.switches


def test_layout_precision_and_gradients():
    network = SMALL.build().eval()
    image = torch.rand(2, 3, 45, 70)
    expected = network(image).maps[0]
    last = network.to(memory_format=torch.channels_last)(image.contiguous(memory_format=torch.channels_last)).maps[0]
    assert torch.allclose(last, expected, atol=1e-5) and last.is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(image).maps[0]
    assert half.dtype == torch.bfloat16 and half.isfinite().all()
    network.train()(image).maps[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.slow
def test_one_graph_for_compilation():
    """A process of its own: the test suite checks annotations at every call, which cannot be compiled."""
    subprocess.run([sys.executable, "-c", """
import torch
from polyptych.backbones.segnet import SegNet
network, image = SegNet.Config(width=2, bottom_width=6).build().eval(), torch.rand(1, 3, 50, 70)
with torch.no_grad():
    compiled = torch.compile(network, backend="eager", fullgraph=True)(image).maps[0]
    assert torch.allclose(compiled, network(image).maps[0], atol=1e-6)
"""], check=True)


@pytest.mark.parametrize("encoder", names())
def test_every_encoder(encoder):
    torch.manual_seed(0)
    network = network_or_skip(SMALL, encoder, Heads.Config(head="linear"), {"a": 3, "b": 1}).train()
    final = network(torch.rand(2, 3, *(37, 50))).final
    assert {name: tuple(x.shape) for name, x in final.items()} == {"a": (2, 3, *(37, 50)), "b": (2, 1, *(37, 50))}
    sum((x * torch.randn_like(x)).mean() for x in final.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("option", ["width", "bottom_width"])
def test_refusals(option):
    with pytest.raises(InputError, match=rf"backbone\.{option}: got 0; needs 1 or more"):
        SegNet.Config(**{option: 0}).build()
