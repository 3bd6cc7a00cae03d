"""InvPT against its equations written out, published parameter counts, pyramids and images of any shape."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from invpt_plain import attention, transcribed
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transcription import CHANNELS, HRNET, NYUD_FOUR, PASCAL, built, count, everywhere, pyramid, randomized

from polyptych.decoders._inverted_pyramid import CrossTaskAttention, maps_of_stages
from polyptych.decoders.invpt import InvPT
from polyptych.errors import InputError
from polyptych.types import Features, FeatureSpec, TaskFeatures

PUBLISHED = InvPT.Config(scale="published", encoder_features="published", drop_path=0.0, unused_weights=True)
TINY = InvPT.Config(width=8, drop_path=0.0)

TAPS, TAPS_SIZES = FeatureSpec((6, 6, 6, 6), (16,) * 4), ((3, 5),) * 4  # of an image of 48x80
STEPS, STEPS_SIZES = FeatureSpec((4, 5, 6, 7), (4, 8, 16, 32)), ((9, 15), (5, 8), (3, 4), (2, 3))  # not halves
PYRAMIDS = pytest.mark.parametrize(("spec", "sizes"), [(TAPS, TAPS_SIZES), (STEPS, STEPS_SIZES)], ids=["taps", "steps"])
TWO_CHANNELS = {"saliency": 2}  # what the published networks predict


# -- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "channels", "decoder", "heads"), [
    (1024, NYUD_FOUR, 97_933_803, 25_965),
    (1024, PASCAL | TWO_CHANNELS, 118_760_688, 19_618),
    (768, NYUD_FOUR, 74_375_659, 25_965),
    (768, PASCAL | TWO_CHANNELS, 89_893_616, 19_618)])
def test_published_counts(width, channels, decoder, heads):
    network = built(PUBLISHED, channels, FeatureSpec((width,) * 4, (16,) * 4))
    assert count(network.heads) == heads and count(network) == decoder + heads


@pytest.mark.parametrize(("channels", "preliminary", "features"), [
    (NYUD_FOUR, 56_635_392, 9_290_736), (PASCAL, 70_794_240, 9_290_736)])
def test_counts_of_the_parts(channels, preliminary, features):
    network = built(InvPT.Config(), channels, FeatureSpec((1024,) * 4, (16,) * 4))
    assert count(network.preliminary) == preliminary
    assert sum(count(stage.encoder) for stage in network.stages) == features
    assert [stage.norm1.normalized_shape for stage in network.stages] == [(576,), (288,), (144,)]


def test_weights_that_nothing_uses_are_frozen_and_change_nothing():
    torch.manual_seed(0)
    with_them = replace(TINY, encoder_features="published", unused_weights=True).build(**everywhere(TAPS, CHANNELS))
    without = replace(TINY, encoder_features="published").build(**everywhere(TAPS, CHANNELS))
    kept = {name: value for name, value in with_them.state_dict().items() if not name.startswith("unused.")}
    without.load_state_dict(kept)
    assert not any(p.requires_grad for p in with_them.unused.parameters())
    inner = 8 + 64
    assert count(with_them.unused) == (2 * 2 * 2 + 2) + len(CHANNELS) * (inner + 1) * inner + (
        2 * len(CHANNELS) * inner // 4) + (9 * 6 + 1) * inner
    features = TaskFeatures(dict.fromkeys(CHANNELS, single(pyramid(spec=TAPS, sizes=TAPS_SIZES))))
    assert torch.equal(with_them(features).final["depth"], without(features).final["depth"])


# -- equations -------------------------------------------------------------------------------------------------------


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-8, atol=1e-8)


OPTIONS = ({}, {"scale": "published", "encoder_features": "published"},
           {"message_passing": False, "heads": 4, "width": 16}, {"encoder_features": "none", "stages": 2},
           {"stages": 4, "width": 16})


@pytest.mark.parametrize(("spec", "sizes", "options"), [
    pytest.param(*pyramid, options, id=f"{options}-{name}",
                 marks=[pytest.mark.grid] * ((number + (name == "steps")) % 2))
    for number, options in enumerate(OPTIONS)
    for name, pyramid in (("steps", (STEPS, STEPS_SIZES)), ("taps", (TAPS, TAPS_SIZES)))])
@torch.no_grad()
def test_is_its_formula(spec, sizes, options):
    decoder = randomized(replace(TINY, **options).build(**everywhere(spec, CHANNELS)))
    for parameter in decoder.parameters():  # of a size at which softmax is neither uniform nor one position
        parameter.data *= 0.3
    features = TaskFeatures(dict.fromkeys(CHANNELS, pyramid(spec=spec, sizes=sizes)))
    output = decoder(features)
    extent = (sizes[-1][0] * spec.strides[-1], sizes[-1][1] * spec.strides[-1])
    initial, final = transcribed(decoder, features, extent, options.get("scale") == "published")
    assert [extra.weight for extra in output.auxiliary] == [1.0]
    for task in CHANNELS:
        assert close(output.auxiliary[0].prediction[task], initial[task])
        assert close(output.final[task], final[task])


def test_is_its_formula_with_a_pyramid_of_its_own_for_every_task():
    decoder = randomized(TINY.build(**everywhere(TAPS, CHANNELS)))
    features = TaskFeatures({task: pyramid(seed, TAPS, TAPS_SIZES) for seed, task in enumerate(CHANNELS)})
    _, final = transcribed(decoder, features, (48, 80), published_scale=False)
    output = decoder(features)
    assert all(close(output.final[task], x) for task, x in final.items())


@pytest.mark.parametrize(("h", "w", "pool"), [(4, 6, 2), (5, 3, 4), (1, 2, 8), (9, 7, 4)])
@pytest.mark.parametrize("receives", [False, True])
@pytest.mark.parametrize("passes", [False, True])
def test_attention_number_by_number(h, w, pool, receives, passes):
    """Also where queries and keys do not divide the grid, and without scores, where torch's fused attention runs."""
    layer = randomized(CrossTaskAttention(("a", "b"), 8, 2, pool, over="head", receives=receives, passes=passes))
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 2, h, w, 8, dtype=torch.float64, generator=generator)
    keys = 2 * math.ceil(h / pool) * math.ceil(w / pool)
    message = torch.randn(2, 2, 2, math.ceil(h / 4), math.ceil(w / 4), keys, dtype=torch.float64, generator=generator)
    result, scores = layer(x, message if receives else None)
    expected, raw = attention(x.permute(0, 1, 4, 2, 3), message if receives else None, layer, 4)
    assert close(result.permute(0, 1, 4, 2, 3), expected)
    assert (scores is not None) == passes and (scores is None or close(scores, raw))


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operator made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in tree_leaves(result) if isinstance(x, Tensor))])
        return result


@pytest.mark.parametrize("message_passing", [False, True])
def test_all_against_all_is_never_stored(message_passing):
    """Forward and backward make nothing larger than scores against the reduced keys, or than the maps themselves."""
    layer = CrossTaskAttention(tuple("abcd"), 8, 2, 8, over="head", receives=message_passing, passes=message_passing)
    x = torch.rand(1, 4, 32, 32, 8, requires_grad=True)
    tokens, queries, keys = 4 * 32 * 32, 4 * 16 * 16, 4 * 4 * 4
    message = torch.rand(1, 2, 4, 8, 8, keys) if message_passing else None
    with Largest() as largest:
        layer(x, message)[0].sum().backward()
    bound = max(2 * 2 * queries * keys, tokens * 8)
    assert 0 < largest.numel <= bound < tokens**2 / 60


def test_drop_path_skips_blocks_in_training_only():
    decoder = replace(TINY, drop_path=0.5).build(**everywhere(TAPS, CHANNELS))
    features = TaskFeatures(dict.fromkeys(CHANNELS, single(pyramid(spec=TAPS, sizes=TAPS_SIZES))))
    torch.manual_seed(0)
    assert len({decoder(features).final["depth"].double().sum().item() for _ in range(6)}) > 1
    decoder.eval()
    assert torch.equal(decoder(features).final["depth"], decoder(features).final["depth"])


# -- any task set, pyramid and size ----------------------------------------------------------------------------------


def single(features: Features) -> Features:
    return Features(tuple(x.float() for x in features.maps))


@pytest.mark.parametrize("count_of_tasks", range(1, 7))
@PYRAMIDS
def test_gradients_reach_every_parameter_and_map(spec, sizes, count_of_tasks):
    channels = {f"task{i}": i + 1 for i in range(count_of_tasks)}
    decoder = TINY.build(**everywhere(spec, channels))
    features = single(pyramid(spec=spec, sizes=sizes))
    for x in features.maps:
        x.requires_grad_()
    output = decoder(TaskFeatures(dict.fromkeys(channels, features)))
    predictions = [*output.final.values(), *output.auxiliary[0].prediction.values()]
    torch.manual_seed(1)
    sum((x * torch.randn_like(x)).sum() for x in predictions).backward()
    for x in (*decoder.parameters(), *features.maps):
        assert x.grad is not None and x.grad.isfinite().all()
    dead = [name for name, p in decoder.named_parameters() if not p.grad.any()]
    # a constant that all scores of a query share means nothing to a softmax: the last fusion's bias, the keys' bias
    assert all(name.endswith(("attention.key.bias", "attention.fuse.bias")) for name in dead)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("strides", "sizes"), [
    ((32,), ((1, 1),)),
    ((16,), ((1, 1),)),
    ((8, 16), ((7, 2), (4, 1))),
    ((16,) * 4, ((17, 1),) * 4),
    ((8, 16, 32), ((5, 9), (3, 5), (2, 3))),
    ((4, 8, 8, 8), ((10, 12), (5, 6), (5, 6), (5, 6))),
    ((4, 8, 16, 32, 64), ((16, 32), (8, 16), (4, 8), (2, 4), (1, 2)))])
def test_no_pyramid_is_refused_in_training(strides, sizes, batch):
    spec = FeatureSpec(tuple(range(3, 3 + len(strides))), strides)
    decoder = TINY.build(**everywhere(spec, CHANNELS))
    maps = tuple(torch.rand(batch, c, h, w, requires_grad=True) for c, (h, w) in zip(spec.channels, sizes, strict=True))
    final = decoder(TaskFeatures(dict.fromkeys(CHANNELS, Features(maps)))).final
    h, w = (n * strides[-1] // 4 for n in sizes[-1])
    assert {task: tuple(x.shape) for task, x in final.items()} == {t: (batch, c, h, w) for t, c in CHANNELS.items()}
    sum(x.square().sum() for x in final.values()).backward()
    assert all(x.isfinite().all() for x in final.values())
    assert all(x.grad is not None and x.grad.isfinite().all() for x in maps)


def test_maps_go_to_the_stages_coarse_to_fine():
    assert maps_of_stages(4, 3) == [[2], [1], [0]]
    assert maps_of_stages(6, 3) == [[4], [3], [2, 1, 0]]
    assert maps_of_stages(2, 3) == [[0], [], []]
    assert maps_of_stages(1, 3) == [[], [], []]
    assert maps_of_stages(4, 1) == [[2, 1, 0]]


# -- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("without", [{"message_passing": False}, {"encoder_features": "none"},
                                     {"encoder_features": "published"}, {"scale": "published"}, {"stages": 2}], ids=str)
def test_every_option_changes_the_result(without):
    features = TaskFeatures(dict.fromkeys(CHANNELS, pyramid(spec=TAPS, sizes=TAPS_SIZES)))
    results = []
    for options in ({}, without):
        decoder = replace(TINY, **options).build(**everywhere(TAPS, CHANNELS)).double()
        for number, (_, p) in enumerate(sorted(decoder.named_parameters())):
            nn.init.normal_(p, std=0.3, generator=torch.Generator().manual_seed(number))
        results.append(decoder(features).final["normals"])
    assert not torch.allclose(*results, rtol=1e-3)


def test_preliminary_predictions_may_be_left_unsupervised():
    features = TaskFeatures(dict.fromkeys(CHANNELS, single(pyramid(spec=TAPS, sizes=TAPS_SIZES))))
    for weight, expected in ((0.0, []), (0.5, [0.5])):
        output = replace(TINY, auxiliary_weight=weight).build(**everywhere(TAPS, CHANNELS))(features)
        assert [extra.weight for extra in output.auxiliary] == expected


def test_ablation_is_that_of_the_paper():
    steps = InvPT.Config().ablation()
    one, stages, messages, whole, published = steps.values()
    assert (one.stages, one.message_passing, one.encoder_features) == (1, False, "none")
    assert replace(one, stages=3) == stages and replace(stages, message_passing=True) == messages
    assert replace(messages, encoder_features="all") == whole == InvPT.Config()
    assert replace(published, unused_weights=True) == PUBLISHED
    assert count(built(one, NYUD_FOUR, HRNET)) < count(built(stages, NYUD_FOUR, HRNET))


@pytest.mark.parametrize(("options", "message"), [
    ({"width": 0}, r"decoder\.width: got 0; needs 1 or more"),
    ({"width": 12}, r"decoder\.width: got 12, with 64 more 76; needs a multiple of 8 in total.*use 16"),
    ({"heads": 0}, "needs 1 or more"),
    ({"heads": 5}, r"a multiple of 20.*use 516"),
    ({"stages": 0}, "needs 1 to 4"),
    ({"stages": 5}, "needs 1 to 4"),
    ({"drop_path": 1.0}, r"decoder\.drop_path: got 1\.0; needs a probability"),
    ({"drop_path": float("nan")}, "needs a probability"),
    ({"auxiliary_weight": -1.0}, r"change --decoder\.auxiliary-weight"),
    ({"auxiliary_weight": float("inf")}, "at least 0")])
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        InvPT.Config(**options)


def test_pyramids_of_different_shapes_are_refused():
    with pytest.raises(InputError, match="decoder 'invpt'"):
        TINY.build(features={"a": TAPS, "b": STEPS}, channels={"a": 1, "b": 1})
