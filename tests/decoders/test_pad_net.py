"""PAD-Net against its equations, published parameter counts, and tasks that only help."""

from __future__ import annotations

import pytest
import torch
from transcription import (
    CHANNELS,
    CITYSCAPES,
    HRNET_PARAMETERS,
    NYUD_FOUR,
    NYUV2,
    PASCAL,
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

from polyptych.decoders.pad_net import PADNet
from polyptych.errors import InputError
from polyptych.types import FeatureSpec, TaskFeatures


@pytest.mark.parametrize(("channels", "auxiliary", "expected"), [
    (NYUV2, (), 12_077_440),
    (CITYSCAPES, (), 7_008_262),
    ({"semseg": 40, "depth": 1}, (), 7_019_056),
    (NYUD_FOUR, ("boundaries", "normals"), 12_161_332),
    (PASCAL, (), 29_304_992),
])
def test_published_counts(channels, auxiliary, expected):
    config = PADNet.Config(gate="source", auxiliary_tasks=auxiliary)
    assert HRNET_PARAMETERS + count(built(config, channels)) == expected


@pytest.mark.parametrize(("gate", "channels", "distillation"), [
    ("source", NYUV2, 7_077_888), ("source", CITYSCAPES, 2_359_296),
    ("target", NYUV2, 9 * 256 * 256 * (6 + 3)), ("target", CITYSCAPES, 2_359_296)])
def test_counts_of_the_parts(gate, channels, distillation):
    decoder = built(PADNet.Config(gate=gate), channels)
    initial, heads = {3: (638_353, 426_769), 2: (427_796, 286_740)}[len(channels)]
    assert (count(decoder.fuse), count(decoder.initial), count(decoder.distill), count(decoder.heads)) == (
        73_710, initial, distillation, heads)


def transcribed(decoder: PADNet, features: TaskFeatures, gate: str):
    own, prediction, final = {}, {}, {}
    for task, head in decoder.initial.items():
        fused = conv_norm_relu(stacked(features[task].maps), decoder.fuse.mix)
        own[task], prediction[task] = bottlenecks(fused, head)
    for t, head in decoder.heads.items():
        refined = own[t]
        for a in own:
            if a != t:
                message = conv(own[a], decoder.distill.message[t][a])
                where = conv(own[t], decoder.distill.gate[t][t]) if gate == "target" else conv(
                    own[a], decoder.distill.gate[t][a])
                refined = refined + message / (1 + (-where).exp())
        final[t] = bottlenecks(refined, head)[1]
    return final, prediction


@pytest.mark.parametrize("gate", ["target", "source"])
@pytest.mark.parametrize("shared", [True, False])
def test_is_its_formula(gate, shared):
    decoder = randomized(PADNet.Config(gate=gate, width=8).build(**everywhere(SMALL, CHANNELS)))
    features = TaskFeatures(dict.fromkeys(CHANNELS, pyramid())) if shared else own_pyramids()
    output = decoder(features)
    final, initial = transcribed(decoder, features, gate)
    assert output.auxiliary[0].weight == 1
    for task in CHANNELS:
        assert torch.allclose(output.final[task], final[task], rtol=1e-9, atol=1e-9)
        assert torch.allclose(output.auxiliary[0].prediction[task], initial[task], rtol=1e-9, atol=1e-9)


def test_tasks_that_share_a_pyramid_fuse_it_once():
    decoder = PADNet.Config(width=8).build(**everywhere(SMALL, CHANNELS)).double()
    calls = []
    decoder.fuse.register_forward_hook(lambda *_: calls.append(1))
    decoder(TaskFeatures(dict.fromkeys(CHANNELS, pyramid())))
    assert len(calls) == 1
    decoder(own_pyramids())
    assert len(calls) == 4


def test_an_auxiliary_task_helps_and_keeps_its_initial_prediction():
    config = PADNet.Config(width=8, auxiliary_tasks=("normals",))
    decoder = randomized(config.build(**everywhere(SMALL, CHANNELS)))
    assert set(decoder.heads) == {"semseg", "depth"} and set(decoder.distill.message["depth"]) == {"semseg", "normals"}
    features = TaskFeatures(dict.fromkeys(CHANNELS, pyramid()))
    output = decoder(features)
    final, initial = transcribed(decoder, features, "target")
    assert list(output.final) == list(CHANNELS) and set(output.auxiliary[0].prediction) == {"semseg", "depth"}
    for task, expected in (final | {"normals": initial["normals"]}).items():
        assert torch.allclose(output.final[task], expected, rtol=1e-9, atol=1e-9)
    output.final["depth"].sum().backward()
    assert decoder.initial["normals"].refine[0].conv1.weight.grad.abs().sum() > 0


def test_one_task_has_nobody_to_listen_to():
    decoder = randomized(PADNet.Config(width=8).build(**everywhere(SMALL, {"depth": 1})))
    assert count(decoder.distill) == 0
    output = decoder(TaskFeatures({"depth": pyramid()}))
    assert output.final["depth"].shape == (2, 1, 9, 14)


@pytest.mark.parametrize(("options", "message"), [
    ({"auxiliary_tasks": ("normal",)}, r"auxiliary_tasks: got 'normal'; needs one of .*nearest: normals"),
    ({"auxiliary_tasks": tuple(CHANNELS)}, "auxiliary_tasks: got every task; needs a task that the others help"),
    ({"width": 10}, r"decoder\.width: got 10; needs a positive multiple of 4"),
    ({"width": 0}, r"decoder\.width: got 0"),
])
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        PADNet.Config(**options).build(**everywhere(SMALL, CHANNELS))


def test_pyramids_of_different_shapes_are_refused():
    features = {"a": SMALL, "b": FeatureSpec((4, 8, 9), SMALL.strides)}
    with pytest.raises(InputError, match=r"decoder 'pad_net': got a: channels .*; needs pyramids of one shape"):
        PADNet.Config().build(features=features, channels={"a": 1, "b": 2})
