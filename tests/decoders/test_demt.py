"""DeMT against its equations written out, published parameter counts, and every option."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transcription import (
    CHANNELS,
    HRNET,
    NYUD_FOUR,
    PASCAL,
    SMALL,
    built,
    conv,
    conv_norm_relu,
    count,
    enlarge,
    everywhere,
    norm,
    own_pyramids,
    pyramid,
    randomized,
    stacked,
)

from polyptych.decoders.demt import DeMT
from polyptych.errors import InputError
from polyptych.types import FeatureSpec, TaskFeatures

PUBLISHED = DeMT.Config(attention="pixel", offsets="published")
SLIM = DeMT.Config(width=8, heads=2, offset_groups=2, reduction=3)
SALIENCY_OF_TWO = {**PASCAL, "saliency": 2}  # as in the published code


def swin(width: int) -> FeatureSpec:
    return FeatureSpec(tuple(width * 2**i for i in range(4)), (4, 8, 16, 32))


@pytest.mark.parametrize(("spec", "nyud", "pascal"), [
    (HRNET, 2_887_498, 3_508_776), (FeatureSpec((48, 96, 192, 384), (4, 8, 16, 32)), 3_531_031, 4_283_124),
    (swin(96), 4_549_561, 5_508_204), (swin(128), 5_228_581, 6_324_924), (swin(192), 6_586_621, 7_958_364)])
def test_published_counts(spec, nyud, pascal):
    assert count(built(PUBLISHED, NYUD_FOUR, spec)) == nyud
    assert count(built(PUBLISHED, SALIENCY_OF_TWO, spec)) == pascal


def test_counts_of_the_parts():
    decoder = built(PUBLISHED, NYUD_FOUR, swin(96))
    assert [count(part) for part in (decoder.embed.linear, decoder.mixers, decoder.interact, decoder.interacted,
                                     decoder.queries, decoder.queried)] == [
        369_408, 864_328, 263_168, 66_304, 1_052_672, 265_216]
    assert count(decoder.heads) == 1_660_320 + 8_145


def test_global_attention_has_as_many_parameters():
    assert count(built(replace(PUBLISHED, attention="global"), NYUD_FOUR)) == count(built(PUBLISHED, NYUD_FOUR))


# -- the equations --------------------------------------------------------------------------------------------------


def layer_norm(x: Tensor, layer) -> Tensor:
    """Over the last dimension."""
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias


def linear(x: Tensor, layer) -> Tensor:
    return torch.einsum("...i,oi->...o", x, layer.weight) + layer.bias


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def moved(x: Tensor, offset: Tensor) -> Tensor:
    """Each channel of (b c h w) read at its own (dy, dx), (b c 2 h w), bilinearly, zero outside."""
    b, c, h, w = x.shape
    y = []
    planes, shifts = x.flatten(0, 1).tolist(), offset.flatten(0, 1).tolist()  # a number of a list is read sooner
    for plane, (down, right) in zip(planes, shifts, strict=True):
        for row, column in product(range(h), range(w)):
            v, u = row + down[row][column], column + right[row][column]
            y.append(sum((1 - abs(v - p)) * (1 - abs(u - q)) * plane[p][q]
                         for p in (math.floor(v), math.floor(v) + 1) for q in (math.floor(u), math.floor(u) + 1)
                         if 0 <= p < h and 0 <= q < w))
    return torch.tensor(y, dtype=x.dtype).view(b, c, h, w)


def offsets(x: Tensor, module, published: bool) -> Tensor:
    b, c, h, w = x.shape
    if not published:
        groups = module.predict.out_channels // 2
        return conv(x, module.predict).view(b, groups, 2, h, w).repeat_interleave(c // groups, dim=1)
    places = conv(x, module.p_conv)
    for k in range(9):
        for row in range(h):
            for column in range(w):
                places[:, k, row, column] += (k // 3 - 1) + row + 1
                places[:, 9 + k, row, column] += (k % 3 - 1) + column + 1
    padded = F.pad(places, (1, 1, 1, 1))
    y = module.opt.bias.view(1, -1, 1, 1).repeat(b, 1, h, w).clone()
    for half in (0, 1):
        outputs, inputs = slice(half * c, (half + 1) * c), slice(9 * half, 9 * half + 9)
        for i in range(3):
            for j in range(3):
                y[:, outputs] += torch.einsum("oc,bchw->bohw", module.opt.weight[outputs, :, i, j],
                                              padded[:, inputs, i:i + h, j:j + w])
    return torch.stack([torch.stack([y[:, 2 * channel], y[:, 2 * channel + 1]], 1) for channel in range(c)], 1)


def mixed(x: Tensor, mixer, published: bool) -> Tensor:
    y = norm(gelu(conv(x, mixer.mix)), mixer.norm)
    return y + norm(gelu(conv(moved(y, offsets(y, mixer.offsets, published)), mixer.deform)), mixer.deformed_norm)


def attention(queries: Tensor, keys: Tensor, layer) -> Tensor:
    """One sequence, (n c) and (m c), with the matrix of scores."""
    (wq, wk, wv), (bq, bk, bv) = layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3)
    q, k, v = queries @ wq.T + bq, keys @ wk.T + bk, keys @ wv.T + bv
    size = q.shape[1] // layer.num_heads
    heads = []
    for head in range(layer.num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = (q[:, part] @ k[:, part].T / math.sqrt(size)).exp()
        heads.append(scores / scores.sum(1, keepdim=True) @ v[:, part])
    return linear(torch.cat(heads, 1), layer.out_proj)


def windows(x: Tensor, factor: int) -> Tensor:
    """(c h w) to the means over windows (m c)."""
    rows = []
    for top in range(0, x.shape[1], factor):
        rows += [x[:, top:top + factor, left:left + factor].mean((1, 2)) for left in range(0, x.shape[2], factor)]
    return torch.stack(rows)


def transcribed(decoder: DeMT, features: TaskFeatures) -> dict[str, Tensor]:
    config, own = decoder.config, {}
    for task, mixers in decoder.mixers.items():
        x = stacked(features[task].maps).permute(0, 2, 3, 1)
        x = layer_norm(linear(x, decoder.embed.linear[0]), decoder.embed.linear[1]).permute(0, 3, 1, 2)
        for mixer in mixers:
            x = mixed(x, mixer, config.offsets == "published")
        own[task] = x
    final = {task: [] for task in own}
    for image in range(2):
        maps = {task: x[image] for task, x in own.items()}
        together = torch.cat([x.flatten(1).T for x in maps.values()])
        c, h, w = next(iter(maps.values())).shape
        if config.interaction and config.attention == "global":
            keys = torch.cat([windows(x, config.reduction) for x in maps.values()])
            together = attention(together, keys, decoder.interact)
        elif config.interaction:
            together = torch.cat([attention(token[None], token[None], decoder.interact) for token in together])
        if config.interaction:
            together = layer_norm(linear(together, decoder.interacted[0]), decoder.interacted[1])
        tokens = dict(zip(maps, together.view(len(maps), h, w, c).permute(0, 3, 1, 2), strict=True))
        for task, x in maps.items():
            if not config.query:
                final[task].append(x + tokens[task] if config.interaction else x)
                continue
            flat = x.flatten(1).T
            if config.attention == "global":
                keys = torch.cat([windows(z, config.reduction) for z in tokens.values()])
                found = attention(flat, keys, decoder.queries[task])
            else:
                found = torch.cat([attention(flat[p:p + 1], torch.stack([z.flatten(1).T[p] for z in tokens.values()]),
                                             decoder.queries[task]) for p in range(h * w)])
            found = layer_norm(linear(found, decoder.queried[task][0]), decoder.queried[task][1])
            final[task].append(x + found.T.view(c, h, w))
    return {task: conv(conv_norm_relu(torch.stack(images), decoder.heads[task]), decoder.heads[task][3])
            for task, images in final.items()}


@pytest.mark.parametrize("changes", [
    {}, {"attention": "pixel"}, {"offsets": "published"}, {"mixer": False}, {"interaction": False}, {"query": False},
    {"reduction": 1},
    *(pytest.param(several, marks=pytest.mark.grid) for several in (
        {"attention": "pixel", "offsets": "published", "depth": 2}, {"interaction": False, "query": False},
        {"attention": "pixel", "query": False}))], ids=str)
@torch.no_grad()
def test_is_its_formula(changes):
    config = replace(SLIM, **changes)
    decoder = randomized(config.build(**everywhere(SMALL, CHANNELS)))
    features = own_pyramids()
    final = decoder(features).final
    expected = transcribed(decoder, features)
    for task in CHANNELS:
        torch.testing.assert_close(final[task], expected[task], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("attention", ["global", "pixel"])
@pytest.mark.parametrize("neck", ["concat", "fpn", "bifpn"])
@pytest.mark.parametrize("tasks", [1, 2, 6])
def test_any_number_of_tasks_and_every_parameter_learns(attention, neck, tasks):
    channels = {f"task{i}": i + 1 for i in range(tasks)}
    decoder = replace(SLIM, attention=attention, neck=neck).build(**everywhere(SMALL, channels)).double()
    shared = pyramid()
    final = decoder(TaskFeatures(dict.fromkeys(channels, shared))).final
    assert {task: tuple(x.shape) for task, x in final.items()} == {t: (2, c, 9, 14) for t, c in channels.items()}
    sum((x * torch.randn_like(x)).sum() for x in final.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())


@pytest.mark.parametrize("attention", ["global", "pixel"])
@torch.no_grad()
def test_images_of_a_batch_never_meet(attention):
    decoder = randomized(replace(SLIM, attention=attention).build(**everywhere(SMALL, CHANNELS))).eval()
    both = pyramid()
    alone = type(both)(tuple(x[:1] for x in both.maps))
    one = decoder(TaskFeatures(dict.fromkeys(CHANNELS, alone))).final
    two = decoder(TaskFeatures(dict.fromkeys(CHANNELS, both))).final
    for task in CHANNELS:
        torch.testing.assert_close(two[task][:1], one[task], rtol=1e-10, atol=1e-10)


def test_a_feature_pyramid_is_lateral_maps_added_from_the_coarsest():
    decoder = randomized(replace(SLIM, neck="fpn").build(**everywhere(SMALL, CHANNELS)))
    maps = pyramid().maps
    x = conv(maps[2], decoder.embed.neck.lateral[2])
    x = conv(maps[1], decoder.embed.neck.lateral[1]) + enlarge(x, 5, 7)
    x = conv(maps[0], decoder.embed.neck.lateral[0]) + enlarge(x, 9, 14)
    torch.testing.assert_close(decoder.embed.neck(maps), conv(x, decoder.embed.neck.smooth), rtol=1e-10, atol=1e-10)


def test_shares_of_a_bidirectional_pyramid_add_up_to_one():
    fuse = replace(SLIM, neck="bifpn").build(**everywhere(SMALL, CHANNELS)).embed.neck.up[0]
    fuse.convolve = torch.nn.Identity()
    fuse.shares.data = torch.tensor([3.0, -1.0, 1.0])
    a, b, c = torch.randn(3, 1, 8, 2, 2)
    torch.testing.assert_close(fuse([a, b, c]), (3 * a + c) / 4, rtol=1e-3, atol=1e-3)


def test_fewer_scales_read_fewer_maps():
    decoder = replace(SLIM, scales=2).build(**everywhere(SMALL, CHANNELS))
    assert decoder.embed.neck.channels == 12
    decoder(TaskFeatures(dict.fromkeys(CHANNELS, type(pyramid())(tuple(x.float() for x in pyramid().maps)))))


def test_local_offsets_begin_with_none():
    decoder = SLIM.build(**everywhere(SMALL, CHANNELS))
    mixer = decoder.mixers["depth"][0]
    assert not mixer.offsets(torch.randn(1, 8, 4, 5)).any()


@torch.no_grad()
def test_published_offsets_keep_their_precision_under_autocast():
    offsets = randomized(replace(SLIM, offsets="published").build(**everywhere(SMALL, CHANNELS))).float()
    module, x = offsets.mixers["depth"][0].offsets, torch.zeros(1, 8, 90, 120)
    exact = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = module(x)
    assert rounded.dtype == torch.float32 and (rounded - exact).abs().max() < 1e-2 * exact.abs().max()


@pytest.mark.parametrize(("changes", "said"), [
    ({"heads": 3}, "decoder.width"), ({"offset_groups": 5}, "decoder.width"), ({"depth": 0}, "decoder.depth"),
    ({"reduction": 0}, "decoder.reduction"), ({"scales": -1}, "decoder.scales")])
def test_bad_options(changes, said):
    with pytest.raises(InputError, match=said):
        replace(SLIM, **changes)


def test_more_scales_than_there_are():
    with pytest.raises(InputError, match="at most 3"):
        replace(SLIM, scales=4).build(**everywhere(SMALL, CHANNELS))


def test_its_parts_can_be_taken_apart():
    steps = DeMT.Config().ablation()
    assert list(steps.values())[3] == DeMT.Config() and len({str(config) for config in steps.values()}) == len(steps)
