"""MTI-Net against its equations, published parameter counts, pyramids of any length, and tasks that only help."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transcription import (
    CHANNELS,
    CITYSCAPES,
    HRNET_PARAMETERS,
    NYUD_FOUR,
    NYUV2,
    PASCAL,
    SIZES,
    SMALL,
    block,
    built,
    conv,
    conv_norm_relu,
    count,
    enlarge,
    everywhere,
    own_pyramids,
    pyramid,
    randomized,
    stacked,
)

from polyptych.decoders.mti_net import FeaturePropagation, MTINet
from polyptych.errors import InputError
from polyptych.types import FeatureSpec, TaskFeatures


@pytest.mark.parametrize("softmax", ["tasks", "published"])
@pytest.mark.parametrize(("channels", "auxiliary", "expected"), [
    (NYUV2, (), 12_638_901),
    (CITYSCAPES, (), 8_566_734),
    ({"semseg": 40, "depth": 1}, (), 8_578_179),
    (NYUD_FOUR, ("boundaries", "normals"), 14_838_121),
    (PASCAL, (), 24_494_171),
])
def test_published_counts(channels, auxiliary, softmax, expected):
    config = MTINet.Config(softmax=softmax, auxiliary_tasks=auxiliary)
    assert HRNET_PARAMETERS + count(built(config, channels)) == expected


@pytest.mark.parametrize(("channels", "scales", "propagation", "distillation", "heads"), [
    (NYUV2, (56_267, 223_325, 889_865, 2_245_409), (103_443, 412_356, 1_647_459),
     (34_992, 139_968, 559_872, 2_239_488), 225_737),
    (CITYSCAPES, (37_676, 149_204, 593_876, 1_498_196), (61_420, 244_592, 976_770),
     (11_664, 46_656, 186_624, 746_496), 152_840),
])
def test_counts_of_the_parts(channels, scales, propagation, distillation, heads):
    decoder = built(MTINet.Config(), channels)
    initial = decoder.initial
    assert tuple(count(a) + count(b) for a, b in zip(initial.refine, initial.predict, strict=True)) == scales
    assert tuple(map(count, initial.propagate)) == propagation
    assert tuple(map(count, decoder.distill)) == distillation
    assert count(decoder.heads) == heads


def propagated(features: dict[str, Tensor], layers: FeaturePropagation, softmax: str) -> dict[str, Tensor]:
    tasks, (_, c, _, _) = list(features), next(iter(features.values())).shape
    everything = torch.cat(list(features.values()), dim=1)
    z = conv(block(block(everything, layers.mask[0]), layers.mask[1]), layers.mask[2]).exp()
    mask = torch.zeros_like(z)
    for channel in range(len(tasks) * c):
        if softmax == "tasks":  # the same channel of every task
            together = [k * c + channel % c for k in range(len(tasks))]
        else:  # T consecutive ones
            first = channel - channel % len(tasks)
            together = list(range(first, first + len(tasks)))
        mask[:, channel] = z[:, channel] / z[:, together].sum(1)
    shared = block(mask * everything, layers.join)
    result = {}
    for task in tasks:
        _, reduce, _, expand, _ = layers.excite[task]
        factor = conv(conv(shared.mean((2, 3), keepdim=True), reduce).relu(), expand)
        result[task] = shared / (1 + (-factor).exp()) + features[task]
    return result


def transcribed(decoder: MTINet, features: TaskFeatures, softmax: str):
    tasks, depth = list(features), len(decoder.distill)
    own, predictions = [None] * depth, [None] * depth
    below = None
    for s in reversed(range(depth)):
        own[s], predictions[s] = {}, {}
        for task in tasks:
            x = features[task].maps[s]
            if below is not None:
                x = torch.cat([x, enlarge(below[task], x.shape[2], x.shape[3])], dim=1)
            first, second = decoder.initial.refine[s][task]
            own[s][task] = block(block(x, first), second)
            predictions[s][task] = conv(own[s][task], decoder.initial.predict[s][task])
        if s > 0:
            below = propagated(own[s], decoder.initial.propagate[s - 1], softmax)
    final = {}
    for t, head in decoder.heads.items():
        distilled = []
        for s in range(depth):
            total = own[s][t]
            for a in tasks:
                if a != t:
                    gate = conv(own[s][a], decoder.distill[s].gate[t][a])
                    total = total + conv(own[s][a], decoder.distill[s].message[t][a]) / (1 + (-gate).exp())
            distilled.append(total)
        final[t] = conv(conv_norm_relu(stacked(distilled), head.fuse), head.predict)
    return final, predictions


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("softmax", ["tasks", "published"])
@pytest.mark.parametrize("shared", [True, False])
def test_is_its_formula(softmax, shared):
    decoder = randomized(MTINet.Config(softmax=softmax, auxiliary_weight=0.25).build(**everywhere(SMALL, CHANNELS)))
    features = TaskFeatures(dict.fromkeys(CHANNELS, pyramid())) if shared else own_pyramids()
    output = decoder(features)
    final, predictions = transcribed(decoder, features, softmax)
    assert [extra.weight for extra in output.auxiliary] == [0.25] * 3
    for task in CHANNELS:
        assert close(output.final[task], final[task])
        for s, extra in enumerate(output.auxiliary):
            assert close(extra.prediction[task], predictions[s][task])


def test_the_two_softmaxes_differ():
    features = TaskFeatures(dict.fromkeys(CHANNELS, pyramid()))
    right, published = (
        randomized(MTINet.Config(softmax=softmax).build(**everywhere(SMALL, CHANNELS)))(features).final["depth"]
        for softmax in ("tasks", "published"))
    assert not torch.allclose(right, published, rtol=1e-2)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_pyramids_of_any_length(depth):
    spec = FeatureSpec((4, 6, 8, 10, 18)[:depth], tuple(2**s for s in range(depth)))
    sizes = ((17, 23), (9, 12), (5, 6), (3, 3), (2, 2))[:depth]
    decoder = randomized(MTINet.Config().build(**everywhere(spec, CHANNELS)))
    features = TaskFeatures(dict.fromkeys(CHANNELS, pyramid(spec=spec, sizes=sizes)))
    output = decoder(features)
    final, _ = transcribed(decoder, features, "tasks")
    assert len(output.auxiliary) == depth
    assert all(close(output.final[task], final[task]) for task in CHANNELS)


def test_an_auxiliary_task_helps_at_every_scale_and_is_not_refined():
    config = MTINet.Config(auxiliary_tasks=("semseg",))
    decoder = randomized(config.build(**everywhere(SMALL, CHANNELS)))
    features = TaskFeatures(dict.fromkeys(CHANNELS, pyramid()))
    output = decoder(features)
    final, predictions = transcribed(decoder, features, "tasks")
    assert list(output.final) == list(CHANNELS) and set(decoder.heads) == {"depth", "normals"}
    assert [set(extra.prediction) for extra in output.auxiliary] == [{"depth", "normals"}, {*CHANNELS}, {*CHANNELS}]
    assert close(output.final["semseg"], predictions[0]["semseg"])
    assert all(close(output.final[task], x) for task, x in final.items())


def test_one_task_works():
    decoder = randomized(MTINet.Config().build(**everywhere(SMALL, {"depth": 1})))
    assert decoder(TaskFeatures({"depth": pyramid()})).final["depth"].shape == (2, 1, *SIZES[0])


@pytest.mark.parametrize(("options", "message"), [
    ({"auxiliary_weight": 0.0}, r"decoder\.auxiliary_weight: got 0\.0; needs a positive number"),
    ({"auxiliary_weight": float("nan")}, "needs a positive number"),
    ({"auxiliary_tasks": ("edges",)}, "got 'edges'"),
])
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        MTINet.Config(**options).build(**everywhere(SMALL, CHANNELS))
