"""PAP-Net against its equations with every affinity matrix written out, and published parameter counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transcription import (
    CHANNELS,
    CITYSCAPES,
    HRNET_PARAMETERS,
    NYUV2,
    SMALL,
    bottlenecks,
    built,
    conv,
    conv_norm_relu,
    count,
    everywhere,
    own_pyramids,
    pyramid,
    randomized,
    stacked,
)

from polyptych.decoders.pap_net import PAPNet
from polyptych.errors import InputError
from polyptych.types import FeatureSpec, TaskFeatures

SLIM = {"width": 8, "initial_width": 8}


@pytest.mark.parametrize("normalization", ["rows", "published"])
@pytest.mark.parametrize(("channels", "expected"), [(NYUV2, 4_780_425), (CITYSCAPES, 4_501_770)])
def test_published_counts(channels, normalization, expected):
    assert HRNET_PARAMETERS + count(built(PAPNet.Config(normalization=normalization), channels)) == expected


@pytest.mark.parametrize(("channels", "expected"), [
    (NYUV2, (73_710, 638_353, 98_688, 9, 108_945)), (CITYSCAPES, (73_710, 427_796, 65_792, 4, 73_748))])
def test_counts_of_the_parts(channels, expected):
    decoder = built(PAPNet.Config(), channels)
    assert (count(decoder.fuse), count(decoder.initial), count(decoder.project), decoder.mixture.numel(),
            count(decoder.heads)) == expected


def affinity(x: Tensor, normalization: str) -> Tensor:
    """(c n) to (n n)."""
    if normalization == "rows":
        unit = x / x.square().sum(0, keepdim=True).sqrt()
        a = (1 + torch.einsum("ci,cj->ij", unit, unit)) / 2
        return a / a.sum(1, keepdim=True)
    unit = x / x.square().sum(1, keepdim=True).sqrt()
    a = torch.einsum("ci,cj->ij", unit, unit)
    return a / a.sum(0, keepdim=True)


def transcribed(decoder: PAPNet, features: TaskFeatures, normalization: str, steps: int, strength: float):
    x, initial, final = {}, {}, {}
    for task, head in decoder.initial.items():
        own, initial[task] = bottlenecks(conv_norm_relu(stacked(features[task].maps), decoder.fuse.mix), head)
        x[task] = conv(own, decoder.project[task])
    for t, (task, head) in enumerate(decoder.heads.items()):
        images = []
        for b in range(2):
            start = state = x[task][b].flatten(1)
            share = decoder.mixture[t].exp() / decoder.mixture[t].exp().sum()
            mixed = sum(share[s] * affinity(x[source][b].flatten(1), normalization) for s, source in enumerate(x))
            for _ in range(steps):
                state = strength * torch.einsum("ij,cj->ci", mixed, state) + (1 - strength) * start
            images.append(state.view_as(x[task][b]))
        final[task] = bottlenecks(torch.stack(images), head)[1]
    return final, initial


@pytest.mark.parametrize("normalization", ["rows", "published"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("shared", [True, False])
def test_is_its_formula(normalization, steps, shared):
    config = PAPNet.Config(normalization=normalization, steps=steps, strength=0.4, **SLIM)
    decoder = randomized(config.build(**everywhere(SMALL, CHANNELS)))
    features = TaskFeatures(dict.fromkeys(CHANNELS, pyramid())) if shared else own_pyramids()
    output = decoder(features)
    final, initial = transcribed(decoder, features, normalization, steps, 0.4)
    assert output.auxiliary[0].weight == 1
    for task in CHANNELS:
        assert torch.allclose(output.final[task], final[task], rtol=1e-8, atol=1e-8)
        assert torch.allclose(output.auxiliary[0].prediction[task], initial[task], rtol=1e-8, atol=1e-8)


def test_at_first_every_task_weighs_all_alike_and_the_weights_learn():
    decoder = PAPNet.Config(**SLIM).build(**everywhere(SMALL, CHANNELS)).double()
    assert torch.equal(decoder.mixture.softmax(1), torch.full((3, 3), 1 / 3, dtype=torch.float64))
    output = decoder(own_pyramids())
    sum(x.square().sum() for x in output.final.values()).backward()
    assert (decoder.mixture.grad.abs() > 0).all()


def test_diffusion_keeps_a_constant_and_never_leaves_the_range():
    """Rows that are averages; the published division by columns does neither."""
    torch.manual_seed(0)
    x = torch.randn(1, 2, 8, 6, 7, dtype=torch.float64)
    x[:, 0, 0] = 3.0
    inside = {}
    for normalization in ("rows", "published"):
        config = PAPNet.Config(normalization=normalization, strength=1.0, **SLIM)
        decoder = config.build(**everywhere(SMALL, {"a": 1, "b": 1})).double()
        diffused = decoder.diffuse(x, 0)
        low, high = x[:, 0].amin((2, 3), keepdim=True), x[:, 0].amax((2, 3), keepdim=True)
        inside[normalization] = bool(((diffused >= low - 1e-9) & (diffused <= high + 1e-9)).all())
        assert torch.allclose(diffused[:, 0], x[:, 0, 0]) == (normalization == "rows")
    assert inside == {"rows": True, "published": False}


def test_half_precision_sums_in_float32():
    decoder = PAPNet.Config(**SLIM).build(**everywhere(SMALL, {"a": 1}))
    x = torch.randn(1, 1, 8, 30, 40)
    exact = decoder.diffuse(x.to(torch.bfloat16).float(), 0)
    with torch.autocast("cpu", torch.bfloat16):
        got = decoder.diffuse(x.to(torch.bfloat16), 0)
    assert got.dtype == torch.float32 and torch.allclose(got, exact, atol=1e-6)


def test_tasks_that_share_a_pyramid_fuse_it_once():
    decoder = PAPNet.Config(**SLIM).build(**everywhere(SMALL, CHANNELS)).double()
    calls = []
    decoder.fuse.register_forward_hook(lambda *_: calls.append(1))
    decoder(TaskFeatures(dict.fromkeys(CHANNELS, pyramid())))
    assert len(calls) == 1


def test_one_task_one_scale():
    spec = FeatureSpec((6,), (16,))
    decoder = PAPNet.Config(**SLIM).build(**everywhere(spec, {"depth": 1})).double()
    output = decoder(TaskFeatures({"depth": pyramid(spec=spec, sizes=((4, 5),))}))
    assert output.final["depth"].shape == (2, 1, 4, 5)


@pytest.mark.parametrize(("options", "message"), [
    ({"width": 6}, r"decoder\.width: got 6; needs a positive multiple of 4"),
    ({"initial_width": 0}, r"decoder\.initial_width: got 0"),
    ({"steps": 0}, r"decoder\.steps: got 0; needs 1 or more"),
    ({"strength": 1.5}, r"decoder\.strength: got 1\.5; needs a share from 0 to 1"),
])
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        PAPNet.Config(**options)
