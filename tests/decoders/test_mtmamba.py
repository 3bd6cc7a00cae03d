"""MTMamba and MTMamba++: the published networks' numbers and sizes, the equations written out, every option."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from published_fixtures import Fixture
from torch import Tensor
from transcription import CHANNELS, NYUD_FOUR, PASCAL, built, conv, count, enlarge, everywhere, norm, pyramid

from polyptych.decoders.mtmamba import MTMamba
from polyptych.errors import InputError
from polyptych.published import mtmamba
from polyptych.renaming import renamed
from polyptych.types import Features, FeatureSpec, TaskFeatures

PLUS = MTMamba.Config()
FIRST = MTMamba.Config(cross="feature", head="dense")
SWIN = FeatureSpec((192, 384, 768, 1536), (4, 8, 16, 32))
SWIN_PARAMETERS = 195_201_204  # of Swin-L with four norms

SALIENCY_OF_TWO = {**PASCAL, "saliency": 2}
CITYSCAPES = {"semseg": 19, "depth": 1}


# -- the published networks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "channels", "parameters"), [
    (FIRST, NYUD_FOUR, 307_999_137), (FIRST, SALIENCY_OF_TWO, 335_858_326), (FIRST, CITYSCAPES, 252_271_688),
    (PLUS, NYUD_FOUR, 315_021_249), (PLUS, SALIENCY_OF_TWO, 343_231_606), (PLUS, CITYSCAPES, 258_595_976)])
def test_published_counts(config, channels, parameters):
    assert count(built(config, channels, SWIN)) == parameters - SWIN_PARAMETERS


@pytest.mark.data
@pytest.mark.parametrize(("name", "config"), [("mtmamba_small", FIRST), ("mtmamba_plus_small", PLUS)])
def test_the_published_decoder(name, config):
    """Of maps, without the backbone; tests/published has the whole network."""
    fixture = Fixture(name)
    channels = fixture.config["tasks"]
    spec = FeatureSpec(tuple(shape[1] for shape in fixture.record["features"]["shapes"]), (4, 8, 16, 32))
    decoder = config.build(**everywhere(spec, channels)).double().eval()
    rules = mtmamba.PLUS if config is PLUS else mtmamba.FIRST
    tensors, left = renamed(fixture.state, rules, {task: task for task in channels}, {"own": config.self_blocks})
    assert all(name.startswith("backbone.") for name in left)
    decoder.load_state_dict(tensors)
    maps = Features(tuple(fixture.drawn(f"feature.{i}", shape)
                          for i, shape in enumerate(fixture.record["features"]["shapes"])))
    with torch.no_grad():
        final = decoder(TaskFeatures(dict.fromkeys(channels, maps))).final
    size = tuple(fixture.config["output_size"])
    fixture.agrees({task: F.interpolate(x, size, mode="bilinear") for task, x in final.items()}, "expect_from_features")


# -- the equations ----------------------------------------------------------------------------------------------------


SPEC = FeatureSpec((4, 6, 10), (4, 8, 16))
SIZES = ((5, 6), (3, 3), (2, 2))  # of maps that are not halves
SMALL = MTMamba.Config(states=3, drop_path=0.0, head_width=5)


def pyramids(tasks=CHANNELS) -> TaskFeatures:
    return TaskFeatures({task: pyramid(seed, SPEC, SIZES) for seed, task in enumerate(tasks)})


def layer_norm(x: Tensor, norm) -> Tensor:
    """Over the last axis."""
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias


def linear(x: Tensor, layers) -> Tensor:
    y = torch.einsum("...i,oi->...o", x, layers.weight)
    return y if layers.bias is None else y + layers.bias


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def convolved(x: Tensor, layers) -> Tensor:
    return conv(x.permute(0, 3, 1, 2), layers).permute(0, 2, 3, 1)


def walked(x: Tensor, control: Tensor, paths) -> Tensor:
    """One position after the other along each path."""
    b, h, w, d = x.shape
    rank, states, _ = paths.sizes
    total = torch.zeros_like(x)
    for k in range(4):
        order = [(i, j) for i in range(h) for j in range(w)] if k % 2 == 0 else [
            (i, j) for j in range(w) for i in range(h)]
        state = torch.zeros(b, d, states, dtype=x.dtype)
        for i, j in order if k < 2 else order[::-1]:
            numbers = control[:, i, j] @ paths.read[k].T
            r, into, out = numbers[:, :rank], numbers[:, rank:rank + states], numbers[:, rank + states:]
            dt = (1 + (r @ paths.v[k].T + paths.beta[k]).exp()).log()
            u = x[:, i, j]
            state = (-dt[..., None] * paths.rate[k].exp()).exp() * state + (dt * u)[..., None] * into[:, None]
            total[:, i, j] += (state * out[:, None]).sum(-1) + paths.skip[k] * u
    return total


def gated_of(x: Tensor, layers, shared: Tensor | None = None) -> Tensor:
    inner, gate = linear(layer_norm(x, layers.norm), layers.enter).chunk(2, dim=-1)
    inner = silu(convolved(inner, layers.local.convolve))
    control = inner if shared is None else linear(shared, layers.cross)
    y = layer_norm(walked(inner, control, layers.paths), layers.scanned)
    return x + linear(y * silu(gate), layers.leave)


def plain_of(x: Tensor, layers) -> Tensor:
    inner = silu(convolved(linear(x, layers.enter), layers.local.convolve))
    return layer_norm(walked(inner, inner, layers.paths), layers.scanned)


def expanded(x: Tensor, layers) -> Tensor:
    b, h, w, _ = x.shape
    y, r = linear(x, layers.linear), layers.ratio
    width = y.shape[-1] // r**2
    result = torch.zeros(b, h * r, w * r, width, dtype=x.dtype)
    for i in range(r):
        for j in range(r):
            result[:, i::r, j::r] = y[..., (i * r + j) * width:(i * r + j + 1) * width]
    return layer_norm(result, layers.norm)


def written_out(decoder: MTMamba, features: TaskFeatures) -> dict[str, Tensor]:
    maps = {task: pyramid.maps[-1].permute(0, 2, 3, 1) for task, pyramid in features.items()}
    for number, stage in enumerate(decoder.stages):
        for task in maps:
            skip = features[task].maps[-2 - number]
            x = enlarge(expanded(maps[task], stage.expand[task]).permute(0, 3, 1, 2), *skip.shape[2:])
            maps[task] = linear(torch.cat([x, skip], dim=1).permute(0, 2, 3, 1), stage.reduce[task])
        for block in stage.blocks:
            joined = torch.cat(list(maps.values()), dim=-1)
            if hasattr(block, "shared"):
                shared = plain_of(layer_norm(joined, block.norm), block.shared)
                for task, layers in block.tasks.items():
                    z = layer_norm(maps[task], layers["norm"])
                    gate = 1 / (1 + (-linear(z, layers["gate"])).exp())
                    mixed = gate * shared + (1 - gate) * plain_of(z, layers["own"])
                    maps[task] = maps[task] + linear(mixed, layers["leave"])
                continue
            shared = None
            if block.share is not None:
                shared = convolved(convolved(layer_norm(joined, block.norm), block.share[0]), block.share[1])
            maps = {task: gated_of(maps[task], layers, shared) for task, layers in block.tasks.items()}
    final = {}
    for task, head in decoder.heads.items():
        if hasattr(head, "expand"):
            final[task] = conv(expanded(maps[task], head.expand).permute(0, 3, 1, 2), head.predict)
        else:
            final[task] = conv(norm(conv(maps[task].permute(0, 3, 1, 2), head[0]), head[1]).relu(), head[3])
    return final


@pytest.mark.parametrize(("cross", "head"), [("semantic", "lite"), ("feature", "dense"),
                                             pytest.param("none", "lite", marks=pytest.mark.grid)])
def test_equations_and_gradients(cross, head):
    config = replace(SMALL, cross=cross, head=head)
    decoder, features = config.build(**everywhere(SPEC, CHANNELS)), pyramids()
    torch.manual_seed(3)
    for parameter in decoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    decoder = decoder.double()
    found, expected = decoder(features).final, written_out(decoder, features)
    for task, x in expected.items():
        assert torch.allclose(found[task], x, rtol=1e-9, atol=1e-9)
    parameters = list(decoder.parameters())
    one, two = (torch.autograd.grad(sum((x**2).mean() for x in final.values()), parameters)
                for final in (found, expected))
    for (name, _), x, y in zip(decoder.named_parameters(), one, two, strict=True):
        assert torch.allclose(x, y, rtol=1e-7, atol=1e-9 * float(1 + y.abs().max())), name


# -- options ----------------------------------------------------------------------------------------------------------


def test_drop_path_falls_from_block_to_block():
    decoder = replace(SMALL, drop_path=0.2).build(**everywhere(SPEC, CHANNELS))
    rates = [block.drop_path.drop_prob for stage in decoder.stages for block in stage.blocks]
    assert rates == pytest.approx([0.2, 0.16, 0.12, 0.08, 0.04, 0.0])


def test_what_a_scan_needs_begins_as_in_mamba():
    paths = MTMamba.Config().build(**everywhere(SPEC, CHANNELS)).stages[0].blocks[0].tasks["depth"].paths
    dt = F.softplus(paths.beta)
    assert paths.rate.exp()[2, 3].tolist() == pytest.approx(range(1, 17)) and (paths.skip == 1).all()
    assert 1e-3 <= float(dt.detach().min()) < float(dt.detach().max()) <= 0.1 + 1e-6


@pytest.mark.parametrize("spec", [FeatureSpec((8,) * 4, (16,) * 4), FeatureSpec((6,), (32,)),
                                  FeatureSpec((4, 7, 9, 5), (4, 16, 16, 32))], ids=str)
@pytest.mark.parametrize("config", [SMALL, replace(SMALL, cross="feature", head="dense")], ids=["plus", "first"])
def test_any_pyramid(spec, config):
    size = (64, 96)
    maps = Features(tuple(torch.randn(1, c, size[0] // s, size[1] // s)
                          for c, s in zip(spec.channels, spec.strides, strict=True)))
    channels = {"semseg": 2, "depth": 1, "normals": 3, "edge": 1, "parts": 4}  # five tasks
    final = config.build(**everywhere(spec, channels))(TaskFeatures(dict.fromkeys(channels, maps))).final
    assert {task: x.shape[1] for task, x in final.items()} == channels


@pytest.mark.parametrize(("options", "place"), [
    ({"self_blocks": -1}, "decoder.self_blocks"), ({"states": 0}, "decoder.states"), ({"ratio": 0}, "decoder.ratio"),
    ({"head_width": 0}, "decoder.head_width"), ({"drop_path": 1.0}, "decoder.drop_path")])
def test_bad_options(options, place):
    with pytest.raises(InputError, match=place):
        MTMamba.Config(**options)


def test_every_variation_builds_and_runs():
    for config in SMALL.ablation().values():
        final = config.build(**everywhere(SPEC, CHANNELS)).double()(pyramids()).final
        assert {task: x.shape[1] for task, x in final.items()} == CHANNELS
