"""TaskPrompter's heads against their equations written out, with published counts, on any pyramid."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transcription import (
    CHANNELS,
    NYUD_FOUR,
    PASCAL,
    SMALL,
    conv,
    count,
    enlarge,
    everywhere,
    norm,
    own_pyramids,
    pyramid,
    randomized,
)

from polyptych.backbones.timm import Timm
from polyptych.decoders.task_prompter import TaskPrompter
from polyptych.devices import shapes_only
from polyptych.encoders.task_prompter import TaskPrompter as Encoder
from polyptych.errors import InputError
from polyptych.networks import Network
from polyptych.types import Features, FeatureSpec, TaskFeatures

SLIM = TaskPrompter.Config(inner=3, width=5)
SALIENCY_OF_TWO = {**PASCAL, "saliency": 2}  # as in the published code
PROMPTED = replace(SMALL, affinities=(2, 3, 4))


@pytest.mark.parametrize(("model", "size", "channels", "encoder", "decoder", "trunk", "heads"), [
    ("vit_large_patch16_384", (512, 512), SALIENCY_OF_TWO, {"windows": 1}, TaskPrompter.Config(),
     395_575_180, 5_529_684),
    pytest.param("vit_large_patch16_384", (448, 576), NYUD_FOUR, {"windows": 4},
                 TaskPrompter.Config(inner=768, width=768, reweight=False), 492_228_224, 21_277_485,
                 marks=pytest.mark.slow),
    ("vit_base_patch16_384", (512, 512), SALIENCY_OF_TWO, {"windows": 4}, TaskPrompter.Config(inner=780, width=1024),
     371_096_084, 47_236_130)])
def test_published_counts(model, size, channels, encoder, decoder, trunk, heads):
    """The published backbone has no class token and a position for it and for each patch of the training images."""
    config = Encoder.Config(size=size, channel="published", scores="raw", **encoder)
    with shapes_only():
        network = Network.build(Timm.Config(model=model), config, decoder, channels)
    width = 1024 if "large" in model else 768
    positions = size[0] * size[1] // 256 + 1
    assert count(network.decoder.heads) == heads
    assert count(network) - heads + (positions - 577) * width - width == trunk


# -- the equations ---------------------------------------------------------------------------------------------------


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def linear(x: Tensor, layer: nn.Conv1d) -> Tensor:
    return torch.einsum("oi,bi->bo", layer.weight[:, :, 0], x) + layer.bias


def prompted(seed: int = 0) -> TaskFeatures:
    generator = torch.Generator().manual_seed(seed)
    return TaskFeatures(own_pyramids(), (), tuple(
        torch.randn(2, heads, len(CHANNELS), len(CHANNELS), dtype=torch.float64, generator=generator)
        for heads in PROMPTED.affinities))


@pytest.mark.parametrize("reweight", [True, False])
@torch.no_grad()
def test_as_written_out(reweight):
    decoder = randomized(built_on_cpu(replace(SLIM, reweight=reweight), PROMPTED)).train()
    features = prompted()
    levels = []
    for level, channels in enumerate(SMALL.channels):
        own = {}
        for task in CHANNELS:
            first, second, third, batch_norm, _, last = decoder.extract[task][level]
            x = features[task].maps[level]
            halves = [torch.einsum("oc,bchw->bohw", first.weight[part, :, 0, 0], half) + first.bias[part].view(-1, 1, 1)
                      for part, half in ((slice(0, 3), x[:, :channels // 2]), (slice(3, 6), x[:, channels // 2:]))]
            y = conv(conv(torch.cat(halves, 1), second), third)
            own[task] = conv(gelu(norm(y, batch_norm)), last)
        mixed = own
        if reweight:
            mixed = {}
            for t, task in enumerate(CHANNELS):
                first, _, second = decoder.weigh[task][level]
                mixed[task] = sum(
                    linear(gelu(linear(features.affinities[level][:, :, t, k], first)), second).view(-1, 1, 1, 1)
                    * own[other] for k, other in enumerate(CHANNELS))
        levels.append({task: enlarge(x, 9, 14) for task, x in mixed.items()})
    final = decoder(features).final
    for task in CHANNELS:
        mix, batch_norm, _, last = decoder.heads[task]
        expected = conv(gelu(norm(conv(sum(x[task] for x in levels), mix), batch_norm)), last)
        assert torch.allclose(final[task], expected, atol=1e-8, rtol=1e-8) and expected.abs().max() > 0.1


def built_on_cpu(config: TaskPrompter.Config, spec: FeatureSpec = SMALL, channels=CHANNELS) -> TaskPrompter:
    torch.manual_seed(0)
    return config.build(**everywhere(spec, channels))


@pytest.mark.parametrize(("strides", "expected"), [((16, 16, 16), (36, 56)), ((8, 16, 16), (18, 28)),
                                                   ((4, 8, 16), (9, 14)), ((1, 2, 4), (9, 14))])
@torch.no_grad()
def test_predicts_at_stride_four_or_that_of_a_finer_map(strides, expected):
    decoder = built_on_cpu(SLIM, FeatureSpec(SMALL.channels, strides)).double()
    assert {task: tuple(x.shape) for task, x in decoder(own_pyramids()).final.items()} == {
        task: (2, c, *expected) for task, c in CHANNELS.items()}


@torch.no_grad()
def test_tasks_read_each_other_only_by_affinities():
    for spec, features, reads in ((SMALL, own_pyramids(), False), (PROMPTED, prompted(), True)):
        decoder = randomized(built_on_cpu(SLIM, spec)).eval()
        before = decoder(features).final
        first, *_, last = CHANNELS
        features[first] = Features(tuple(x + 1 for x in features[first].maps))
        after = decoder(features).final
        assert torch.equal(before[last], after[last]) != reads
        assert not torch.equal(before[first], after[first])
    assert not built_on_cpu(SLIM, SMALL).weigh and not built_on_cpu(replace(SLIM, reweight=False), PROMPTED).weigh
    assert not TaskPrompter.refines


@pytest.mark.parametrize("tasks", [1, 2, 6])
def test_any_number_of_tasks_and_odd_channels(tasks):
    channels = {f"task{number}": number + 1 for number in range(tasks)}
    spec = FeatureSpec((3, 8, 7), (4, 8, 16), (1, 2, 3))
    features = TaskFeatures({task: pyramid(number, spec) for number, task in enumerate(channels)}, (),
                            tuple(torch.randn(2, heads, tasks, tasks, dtype=torch.float64) for heads in (1, 2, 3)))
    decoder = built_on_cpu(SLIM, spec, channels).double()
    final = decoder(features).final
    assert {task: tuple(x.shape) for task, x in final.items()} == {t: (2, c, 9, 14) for t, c in channels.items()}
    sum((x * torch.randn_like(x)).mean() for x in final.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in decoder.parameters())


def test_tasks_with_pyramids_of_their_own_shape():
    """Without mixing nothing asks for equal pyramids."""
    own = {"a": FeatureSpec((4, 6), (8, 16)), "b": FeatureSpec((5,), (8,))}
    decoder = SLIM.build(features=own, channels={"a": 2, "b": 3})
    features = TaskFeatures({"a": Features((torch.rand(2, 4, 6, 8), torch.rand(2, 6, 3, 4))),
                             "b": Features((torch.rand(2, 5, 6, 8),))})
    assert {task: tuple(x.shape) for task, x in decoder(features).final.items()} == {
        "a": (2, 2, 12, 16), "b": (2, 3, 12, 16)}


@pytest.mark.parametrize("half", [False, True])
def test_features_without_a_bound_in_float16(half):
    decoder, features = built_on_cpu(TaskPrompter.Config(inner=4, width=8)).train(), prompted()
    large = TaskFeatures({task: Features(tuple(x.half() if half else (1e6 * x).float() for x in pyramid.maps))
                          for task, pyramid in features.items()}, affinities=features.affinities)
    with torch.autocast("cpu", dtype=torch.float16):
        output = decoder(large)
    assert all(x.isfinite().all() for x in output.final.values())


@pytest.mark.parametrize("field", ["inner", "width"])
def test_refusals(field):
    with pytest.raises(InputError, match=rf"decoder\.{field}: got 0; needs 1 or more"):
        TaskPrompter.Config(**{field: 0})
