"""EMA-Net against a plain transcription of its equations, its parameter counts, its grid and its ablations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyptych.backbones.timm import Timm
from polyptych.decoders import _cross_task
from polyptych.decoders._cross_task import CrossTaskAffinity, CrossTaskConfig, PositionwiseFilters, grid_of
from polyptych.decoders.ema_net import EMANet
from polyptych.decoders.ema_net_multi_scale import EMANetMultiScale
from polyptych.encoders.shared import Shared
from polyptych.errors import InputError
from polyptych.networks import Network
from polyptych.recipes import _catalog
from polyptych.record import decode, encode
from polyptych.run import Run
from polyptych.types import Features, FeatureSpec, Output, TaskFeatures

NYUV2 = ((288, 384), {"semseg": 13, "depth": 1, "normals": 3})
CITYSCAPES = ((128, 256), {"semseg": 19, "depth": 1})
SPEC = FeatureSpec((3, 4, 5), (4, 8, 16))
CHANNELS = {"a": 2, "b": 1, "c": 3}
SIZE = (16, 32)  # of an image whose pyramid has grids of 4x8, 2x4 and 1x2
BOTH = pytest.mark.parametrize("kind", [EMANet, EMANetMultiScale])


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("kind", "fusion", "setting", "expected"), [
    (EMANet, "shared", NYUV2, 6_057_216),
    (EMANet, "per_task", NYUV2, 6_444_288),
    (EMANet, "shared", CITYSCAPES, 5_262_854),
    (EMANet, "per_task", CITYSCAPES, 5_301_766),
    (EMANetMultiScale, "shared", NYUV2, 11_149_783),
    (EMANetMultiScale, "per_task", NYUV2, 11_536_855),
    (EMANetMultiScale, "shared", CITYSCAPES, 8_474_086),
    (EMANetMultiScale, "per_task", CITYSCAPES, 8_512_998),
])
def test_counts_of_the_published_networks(kind, fusion, setting, expected):
    size, channels = setting
    decoder = kind.Config(fusion=fusion, size=size).build(
        features=dict.fromkeys(channels, FeatureSpec((18, 36, 72, 144), (4, 8, 16, 32))), channels=channels)
    assert count(decoder) + 3_860_720 == expected  # with HRNet-W18-small-v2, pinned in test_heads_and_counts


def test_counts_of_the_parts():
    size, channels = NYUV2
    spec = dict.fromkeys(channels, FeatureSpec((18, 36, 72, 144), (4, 8, 16, 32)))
    single = EMANet.Config(fusion="shared", size=size).build(features=spec, channels=channels)
    multi = EMANetMultiScale.Config(fusion="shared", size=size).build(features=spec, channels=channels)
    refine = single.refine
    assert [count(m) for m in (single.fuse, single.initial, refine.enter, refine.affinity.values,
                               refine.affinity.filters, refine.enlarge, refine.heads)] == [
        73_710, 638_353, 98_688, 442_752, 193_536, 640_512, 108_945]
    assert count(multi.initial) + 3_860_720 == 9_438_844 and count(multi.fuse) == 221_130
    assert count(multi.refine) == 1_380_864 + 108_945


# -- against the equations -------------------------------------------------------------------------------------------

def published(x: Tensor, affinity: CrossTaskAffinity, gamma: float) -> Tensor:
    """Section 6.1 of the facts, with every matrix written out: x (b t c h w)."""
    b, t, c, h, w = x.shape
    k = affinity.filters.kernel_size
    radius = k // 2
    flat = x.flatten(3)
    unit = flat / flat.square().sum(2, keepdim=True).sqrt()
    like = torch.einsum("btcn,btcp->btnp", unit, unit).view(b, t, h * w, h, w)
    padded = torch.zeros(b, t, h * w, h + k - 1, w + k - 1, dtype=x.dtype)
    padded[..., radius:radius + h, radius:radius + w] = like
    rows = []
    for target in range(t):
        filters = 0 if affinity.shared else target
        weight, bias = affinity.filters.weight[filters], affinity.filters.bias[filters, 0]
        value = F.conv2d(x[:, target], affinity.values[target].weight, affinity.values[target].bias, padding=1)
        result = torch.zeros(b, c, h * w, dtype=x.dtype)
        for i in range(h * w):
            mixed = bias[i // w, i % w] * torch.ones(b, h, w, dtype=x.dtype)
            for source in range(t):
                for dy in range(k):
                    for dx in range(k):
                        factor = weight[(source * k + dy) * k + dx, i // w, i % w]
                        mixed = mixed + factor * padded[:, source, i, dy:dy + h, dx:dx + w]
            result[:, :, i] = torch.einsum("bcyx,byx->bc", value, mixed)
        rows.append(gamma * result.view(b, c, h, w) + (1 - gamma) * x[:, target])
    return torch.stack(rows, 1)


@pytest.mark.parametrize("method", ["auto", "linear", "streamed", "materialized"])
@pytest.mark.parametrize("fusion", ["shared", "per_task"])
@pytest.mark.parametrize(("tasks", "kernel_size"), [(3, 3), (1, 3), (2, 1), (2, 5)])
@torch.no_grad()
def test_affinity_is_its_equations(tasks, kernel_size, fusion, method):
    torch.manual_seed(0)
    config = CrossTaskConfig(width=4, kernel_size=kernel_size, fusion=fusion, gamma=0.3, method=method)
    affinity = CrossTaskAffinity(config, tasks=tasks, grid=(4, 5), ratio=1).double()
    x = torch.randn(2, tasks, 4, 4, 5, dtype=torch.float64)
    assert torch.allclose(affinity(x), published(x, affinity, 0.3), rtol=1e-10, atol=1e-10)


def convolved(x: Tensor, layer: nn.Conv2d) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=layer.weight.shape[-1] // 2)


def normalized(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)


def bottleneck(x: Tensor, block: nn.Module) -> Tensor:
    inside = normalized(convolved(x, block.conv1), block.bn1).relu()
    inside = normalized(convolved(inside, block.conv2), block.bn2).relu()
    if block.downsample is not None:
        x = normalized(convolved(x, block.downsample[0]), block.downsample[1])
    return (x + normalized(convolved(inside, block.conv3), block.bn3)).relu()


def head(x: Tensor, module: nn.Module) -> tuple[Tensor, Tensor]:
    for block in module.refine:
        x = bottleneck(x, block)
    return x, convolved(x, module.predict)


def doubled(x: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
    b, _, h, w = x.shape
    return torch.einsum("bchw,cdyx->bdhywx", x, layer.weight).reshape(b, -1, 2 * h, 2 * w) + layer.bias.view(-1, 1, 1)


def pyramid(size: tuple[int, int] = SIZE, dtype: torch.dtype = torch.float64) -> TaskFeatures:
    generator = torch.Generator().manual_seed(1)
    maps = tuple(torch.randn(2, c, size[0] // s, size[1] // s, dtype=dtype, generator=generator)
                 for c, s in zip(SPEC.channels, SPEC.strides, strict=True))
    return TaskFeatures(dict.fromkeys(CHANNELS, Features(maps)), shared=maps)


def build(kind: type[EMANet] | type[EMANetMultiScale], **options) -> nn.Module:
    """A small network in float64. The same seed and options give the same weights."""
    torch.manual_seed(0)
    config = kind.Config(**{"size": SIZE, "width": 8, "gamma": 0.2, **options})
    return config.build(features=dict.fromkeys(CHANNELS, SPEC), channels=CHANNELS).double()


def refined(features: dict[str, Tensor], decoder: nn.Module, gamma: float) -> dict[str, Tensor]:
    """From every task's features to its final prediction."""
    part = decoder.refine
    x = torch.stack([convolved(features[task], part.enter[task]) for task in CHANNELS], 1)
    mixed = published(x, part.affinity, gamma)
    final = {}
    for j, task in enumerate(CHANNELS):
        up, norm, _, conv = part.enlarge[task]
        final[task] = head(convolved(normalized(doubled(mixed[:, j], up), norm).relu(), conv), part.heads[task])[1]
    return final


def fused(maps: tuple[Tensor, ...], module: nn.Module) -> Tensor:
    size = tuple(maps[0].shape[-2:])
    stacked = torch.cat([F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in maps], 1)
    return normalized(convolved(stacked, module.mix[0]), module.mix[1]).relu()


@torch.no_grad()
def test_single_scale_network_is_its_equations():
    decoder, features = build(EMANet, initial_width=12), pyramid()
    output = decoder(features)
    common = fused(features["a"].maps, decoder.fuse)
    initial = {task: head(common, decoder.initial[task]) for task in CHANNELS}
    expected = refined({task: own for task, (own, _) in initial.items()}, decoder, 0.2)
    [auxiliary] = output.auxiliary
    assert auxiliary.weight == 1
    for task, c in CHANNELS.items():
        assert output.final[task].shape == (2, c, 8, 16)
        assert torch.allclose(output.final[task], expected[task], atol=1e-9)
        assert torch.allclose(auxiliary.prediction[task], initial[task][1], atol=1e-10)


@torch.no_grad()
def test_multi_scale_network_is_its_equations():
    decoder, features = build(EMANetMultiScale), pyramid()
    output = decoder(features)
    scales, predictions = decoder.initial(features)  # MTI-Net's part has its own test
    own = {task: fused(tuple(scale[task] for scale in scales), decoder.fuse[task]) for task in CHANNELS}
    expected = refined(own, decoder, 0.2)
    assert all(torch.allclose(output.final[task], expected[task], atol=1e-9) for task in CHANNELS)
    assert [extra.weight for extra in output.auxiliary] == [1 / 3] * 3
    for extra, scale in zip(output.auxiliary, predictions, strict=True):
        assert all(torch.equal(extra.prediction[task], scale[task]) for task in CHANNELS)


# -- the grid --------------------------------------------------------------------------------------------------------

def test_filters_on_their_own_grid_are_the_stored_bits():
    filters = PositionwiseFilters(2, 3, 3, (4, 5))
    kernel, bias = filters((4, 5))
    assert kernel.shape == (2, 20, 3, 3, 3) and bias.shape == (2, 20)
    for position, source, dy, dx in ((0, 0, 0, 0), (7, 1, 2, 0), (19, 2, 1, 2)):
        stored = filters.weight[:, (source * 3 + dy) * 3 + dx, position // 5, position % 5]
        assert torch.equal(kernel[:, position, source, dy, dx], stored)
    assert torch.equal(bias, filters.bias.flatten(1))


def test_filters_start_like_a_convolution():
    filters = PositionwiseFilters(2, 3, 3, (12, 16))
    bound = 27**-0.5
    for values in (filters.weight, filters.bias):
        assert 0.95 * bound < values.abs().max() <= bound and abs(values.mean()) < 0.1 * bound


@pytest.mark.parametrize("grid", [(8, 10), (7, 3), (1, 1), (4, 6)])
def test_filters_on_another_grid_are_resampled_and_keep_their_sum(grid):
    filters = PositionwiseFilters(2, 3, 3, (4, 5)).double()
    rows, columns = (((torch.arange(b, dtype=torch.float64) + 0.5) * a / b - 0.5).clamp(0, a - 1)
                     for a, b in zip((4, 5), grid, strict=True))
    nn.init.zeros_(filters.weight)
    with torch.no_grad():  # bilinear resampling keeps a ramp
        filters.weight[1, 14] = 10 * torch.arange(4.0)[:, None] + torch.arange(5.0)
        filters.bias.fill_(2)
    kernel, bias = filters(grid)
    share = 20 / (grid[0] * grid[1])
    ramp = share * (10 * rows[:, None] + columns).flatten()
    assert torch.allclose(kernel[1, :, 1, 1, 2], ramp) and kernel[0].abs().max() == 0
    assert torch.allclose(bias, torch.full_like(bias, 2 * share))
    (kernel.sum() + bias.sum()).backward()
    assert filters.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_an_image_of_twice_the_size_gives_the_same_up_to_interpolation():
    """With filters that look at one position and are alike everywhere, a doubled map must give the doubled result:
    the sum over four times as many positions must not be four times as large."""
    torch.manual_seed(0)
    config = CrossTaskConfig(width=4, kernel_size=1, gamma=0.5)
    affinity = CrossTaskAffinity(config, tasks=2, grid=(3, 4), ratio=1).double()
    for parameter in affinity.filters.parameters():
        parameter.copy_(parameter[..., :1, :1].expand_as(parameter))
    for value in affinity.values:
        value.weight[:, :, [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0  # a 1x1 convolution
    x = torch.randn(1, 2, 4, 3, 4, dtype=torch.float64)

    def double(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 3).repeat_interleave(2, 4)

    assert torch.allclose(affinity(double(x)), double(affinity(x)), atol=1e-10)


def test_the_grid_follows_from_size_scale_and_padding():
    assert grid_of((288, 384), 4, 32) == (72, 96) and grid_of((128, 256), 4, 32) == (32, 64)
    assert grid_of((97, 130), 4, 32) == (32, 40)  # of 128x160
    assert grid_of((100, 102), 16, 4) == (7, 7)
    spec = dict.fromkeys(CHANNELS, FeatureSpec((6,), (16,)))
    grids = [build(EMANet, scale=scale, size=(288, 384)).refine.affinity.filters.grid for scale in (4, 8, 16)]
    assert grids == [(72, 96), (36, 48), (18, 24)]
    coarse = EMANet.Config(width=8).build(features=spec, channels=CHANNELS)
    assert coarse.refine.affinity.filters.grid == (18, 24)  # the backbone has nothing finer


@pytest.mark.parametrize(("scale", "size"), [(8, (16, 32)), (16, (16, 32)), (8, (24, 44))])
@torch.no_grad()
def test_a_coarser_scale_averages_compares_and_comes_back(scale, size):
    ratio = scale // 4
    config = CrossTaskConfig(width=4, gamma=0.3)
    torch.manual_seed(0)
    height, width = size[0] // 4, size[1] // 4
    grid = (-(-height // ratio), -(-width // ratio))
    affinity = CrossTaskAffinity(config, tasks=2, grid=grid, ratio=ratio).double()
    x = torch.randn(1, 2, 4, height, width, dtype=torch.float64)
    coarse = torch.stack([torch.stack([x[..., r:r + ratio, c:c + ratio].mean((-1, -2))
                                       for c in range(0, width, ratio)], -1) for r in range(0, height, ratio)], -2)
    gathered = published(coarse, affinity, 1.0).flatten(0, 1)
    back = F.interpolate(gathered, size=(height, width), mode="bilinear", align_corners=False).view_as(x)
    assert torch.allclose(affinity(x), 0.3 * back + 0.7 * x, atol=1e-10)


@BOTH
@pytest.mark.parametrize("size", [(16, 32), (48, 80), (16, 16)])
def test_any_size_of_image(kind, size):
    decoder = build(kind, scale=8)
    final = decoder(pyramid(size)).final
    assert all(final[task].shape == (2, c, size[0] // 2, size[1] // 2) for task, c in CHANNELS.items())


# -- options ---------------------------------------------------------------------------------------------------------

@BOTH
@pytest.mark.parametrize("scale", [4, 8, 16])
@torch.no_grad()
def test_gamma_zero_is_no_affinity(kind, scale):
    zero, without = build(kind, gamma=0.0, scale=scale), build(kind, affinity=False)
    without.load_state_dict({name: value for name, value in zero.state_dict().items() if ".affinity." not in name})
    assert count(zero) - count(zero.refine.affinity) == count(without)
    first, second = zero(pyramid()), without(pyramid())
    assert all(torch.equal(first.final[task], second.final[task]) for task in CHANNELS)


@BOTH
@pytest.mark.parametrize("options", [
    {"deep_supervision": False}, {"affinity": False}, {"affinity": False, "deep_supervision": False},
    {"learn_gamma": True}, {"fusion": "shared", "kernel_size": 1}, {"scale": 16, "size": (40, 24)}])
def test_every_parameter_learns_under_every_option(kind, options):
    decoder = build(kind, **options)
    output = decoder(pyramid())
    assert bool(output.auxiliary) == options.get("deep_supervision", True)
    assert_every_parameter_learns(decoder, output)
    if options.get("learn_gamma"):
        assert decoder.refine.affinity.gamma.shape == (3,) and decoder.refine.affinity.gamma.grad.abs().min() > 0


def assert_every_parameter_learns(decoder: nn.Module, output: Output) -> None:
    predictions = [*output.final.values(), *(x for extra in output.auxiliary for x in extra.prediction.values())]
    sum((x * torch.randn_like(x)).sum() for x in predictions).backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_without_cross_scale_fusion_the_finest_features_are_compared():
    decoder = build(EMANetMultiScale, cross_scale=False)
    assert decoder.fuse is None and decoder.refine.enter["a"].in_channels == 3
    assert_every_parameter_learns(decoder, decoder(pyramid()))


@torch.no_grad()
def test_published_softmax_reaches_the_trunk():
    ours, theirs = build(EMANetMultiScale), build(EMANetMultiScale, softmax="published")
    theirs.load_state_dict(ours.state_dict())
    assert not torch.allclose(ours(pyramid()).final["a"], theirs(pyramid()).final["a"])


@pytest.mark.parametrize(("kind", "options", "said"), [
    (EMANet, {"kernel_size": 2}, r"decoder\.kernel_size: got 2; needs a positive odd number; change --decoder\.k"),
    (EMANet, {"gamma": 1.5}, r"decoder\.gamma: got 1\.5; needs a share from 0 to 1"),
    (EMANetMultiScale, {"size": (0, 384)}, r"decoder\.size: got \(0, 384\); needs a positive height and width"),
    (EMANetMultiScale, {"width": 6}, r"decoder\.width: got 6; needs a positive multiple of 4"),
    (EMANet, {"initial_width": 0}, r"decoder\.initial_width: got 0; needs a positive multiple of 4"),
])
def test_bad_options_are_refused(kind, options, said):
    with pytest.raises(InputError, match=said):
        kind.Config(**options)


# -- numbers and networks --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("parameters", [torch.float32, None])
def test_the_affinity_is_float32_in_half_precision(monkeypatch, dtype, parameters):
    seen = []

    def spy(*tensors, method):
        seen.extend(x.dtype for x in tensors)
        return real(*tensors, method=method)

    real = _cross_task.cross_task_affinity
    monkeypatch.setattr(_cross_task, "cross_task_affinity", spy)
    decoder = build(EMANet).to(parameters or dtype)
    with torch.autocast("cpu", dtype, enabled=parameters is not None):
        final = decoder(pyramid(dtype=parameters or dtype)).final
    assert seen == [torch.float32] * 4 and all(x.isfinite().all() for x in final.values())


def test_features_of_length_zero_stay_zero_and_have_a_gradient():
    affinity = CrossTaskAffinity(CrossTaskConfig(width=4), tasks=2, grid=(3, 4), ratio=1)
    x = torch.zeros(1, 2, 4, 3, 4, requires_grad=True)
    y = affinity(x)
    y.sum().backward()
    assert y.isfinite().all() and x.grad.isfinite().all()


def test_a_shared_pyramid_is_fused_once():
    decoder, calls = build(EMANet), []
    decoder.fuse.register_forward_hook(lambda *_: calls.append(1))
    shared = decoder(pyramid()).final
    assert len(calls) == 1
    maps = pyramid()["a"].maps
    own = decoder(TaskFeatures({task: Features(maps) for task in CHANNELS})).final
    assert len(calls) == 4 and all(torch.allclose(shared[task], own[task]) for task in CHANNELS)


@BOTH
@torch.no_grad()
def test_channels_last_gives_the_same(kind):
    network = Network.build(Timm.Config(model="test_resnet"), Shared.Config(),
                            kind.Config(width=8, size=(64, 96)), CHANNELS).eval()
    image = torch.rand(1, 3, 64, 96)
    expected = network(image).final["a"]
    network.to(memory_format=torch.channels_last)
    assert torch.allclose(network(image.contiguous(memory_format=torch.channels_last)).final["a"], expected, atol=1e-4)


@pytest.mark.parametrize(("name", "kind"), [("nyuv2_ema_net", EMANet), ("nyuv2_ema_net_multi_scale", EMANetMultiScale)])
def test_recipes_train_the_published_setting_on_the_grid_of_their_images(name, kind):
    run = _catalog.load(name)()
    assert run.recipe == name and decode(Run, encode(run), "run") == run
    assert isinstance(run.decoder, kind.Config) and run.decoder.size == run.size == (288, 384)
    assert (run.decoder.gamma, run.decoder.kernel_size, run.batch_size) == (0.05, 3, 8)
    assert list(run.tasks) == ["semseg", "depth", "normals"] and set(run.balancer.weights.values()) == {1.0}
