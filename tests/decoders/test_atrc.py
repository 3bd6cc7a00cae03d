"""ATRC: published sizes, the equations written out, the search, every option."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transcription import (
    CHANNELS,
    PASCAL,
    SMALL,
    built,
    conv,
    count,
    everywhere,
    own_pyramids,
    randomized,
    stacked,
)

from polyptych.decoders.atrc import ATRC, Choice
from polyptych.errors import InputError
from polyptych.ops.neighborhood import neighborhood_attention
from polyptych.types import FeatureSpec, TaskFeatures

NYUD = {"semseg": 40, "depth": 1, "normals": 3, "boundaries": 1}
OF_NYUD = {"depth": 40, "normals": 40, "boundaries": 2}
SALIENCY_OF_TWO = {**PASCAL, "saliency": 2}
HRNET48 = FeatureSpec((48, 96, 192, 384), (4, 8, 16, 32))
ALL_KINDS = "324 143 000"  # of semseg, depth and normals


# -- the published networks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("contexts", "parameters"), [
    ("global", 873_452), ("target_label", 1_200_274), ("source_label", 1_200_274),
    ("3344 4344 4334 3313", 1_200_274), ("search", 1_598_594)])
def test_published_counts_on_nyud(contexts, parameters):
    decoder = built(ATRC.Config(contexts=contexts, regions=OF_NYUD), NYUD)
    assert count(decoder) - count(decoder.values) == parameters


@pytest.mark.parametrize(("contexts", "parameters"), [
    ("global", 6_247_665), ("target_label", 8_414_987), ("3004 4114 4114 3333", 7_153_827), ("search", 11_295_063)])
def test_published_counts_on_nyud_of_the_large_backbone(contexts, parameters):
    decoder = built(ATRC.Config(contexts=contexts, regions=OF_NYUD), NYUD, HRNET48)
    assert count(decoder) - count(decoder.values) == parameters


@pytest.mark.parametrize(("contexts", "parameters"), [
    ("global", 1_147_062), ("target_label", 1_533_774), ("33404 33434 33343 33334 33313", 1_522_422),
    ("search", 2_167_494)])
def test_published_counts_on_pascal(contexts, parameters):
    decoder = built(ATRC.Config(contexts=contexts, regions={"normals": 40, "boundaries": 2}), SALIENCY_OF_TWO)
    assert count(decoder) - count(decoder.values) == parameters


# -- the equations ----------------------------------------------------------------------------------------------------


def normalized(x: Tensor, norm) -> Tensor:
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    y = (x - mean) / (variance + norm.eps).sqrt()
    return y if norm.weight is None else y * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)


def cbr(x: Tensor, layers, first: int = 0) -> Tensor:
    return normalized(conv(x, layers[first]), layers[first + 1]).relu()


def attended(x: Tensor, layers, softplus: bool) -> Tensor:
    y = normalized(conv(cbr(x, layers), layers[3]), layers[4])
    return (1 + y.exp()).log() if softplus else y.relu()


def context(kind: int, block, target: Tensor, source: Tensor, of_target: Tensor, of_source: Tensor) -> Tensor:
    """Position by position."""
    b, _, h, w = target.shape
    q = attended(target, block.query, kind == 1)
    d = q.shape[1]
    result = torch.zeros_like(q)
    if kind in (3, 4):
        logits = of_target if kind == 3 else of_source
        shares = logits.flatten(2).exp() / logits.flatten(2).exp().sum(-1, keepdim=True)
        vectors = torch.einsum("bkl,bcl->bck", shares, source.flatten(2))[..., None]
        keys, values = attended(vectors, block.key, False)[..., 0], cbr(vectors, block.value)[..., 0]
        for i in range(b):
            for y in range(h):
                for x in range(w):
                    weights = (q[i, :, y, x] @ keys[i] / d**0.5).softmax(0)
                    result[i, :, y, x] = values[i] @ weights
        return result
    k, v = attended(source, block.key, kind == 1), cbr(source, block.value)
    for i in range(b):
        for y in range(h):
            for x in range(w):
                if kind == 1:
                    weights = torch.einsum("c,chw->hw", q[i, :, y, x], k[i])
                    result[i, :, y, x] = (v[i] * weights / weights.sum()).sum((1, 2))
                    continue
                scores, reached = [], []
                for row in range(y - 4, y + 5):
                    for column in range(x - 4, x + 5):
                        inside = 0 <= row < h and 0 <= column < w
                        scores.append(q[i, :, y, x] @ k[i, :, row, column] / d**0.5 if inside else torch.zeros(()))
                        reached.append(v[i, :, row, column] if inside else torch.zeros_like(v[i, :, 0, 0]))
                weights = torch.stack([s.double() for s in scores]).softmax(0)
                result[i, :, y, x] = sum(weight * value for weight, value in zip(weights, reached, strict=True))
    return result


def written_out(decoder: ATRC, features: TaskFeatures) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    tasks = list(decoder.heads)
    stack = {task: stacked(features[task].maps) for task in tasks}
    own = {task: cbr(stack[task], decoder.features[task]) for task in tasks}
    regions = {task: conv(cbr(stack[task].detach(), layers), layers[3]) for task, layers in decoder.regions.items()}
    final = {}
    for target in tasks:
        x, found = own[target], []
        for source in tasks:
            kind = decoder.contexts[target][source]
            if kind:
                found.append(context(kind, decoder.pairs[target][source], own[target], own[source],
                                     regions.get(target), regions.get(source)))
        if found:
            taken = decoder.join[target]
            x = torch.cat([x, normalized(conv(torch.cat(found, dim=1), taken[0]), taken[1])], dim=1)
        final[target] = conv(cbr(x, decoder.finish[target]), decoder.heads[target])
    auxiliary = {}
    for task, logits in regions.items():
        auxiliary[task] = conv(logits.softmax(1), decoder.values[task]) if task in decoder.values else logits
    return final, auxiliary


def test_equations_and_gradients():
    """In training, with the batch's statistics."""
    config = ATRC.Config(contexts=ALL_KINDS, regions={"depth": 4}, dropout=0.0, width=6)
    features = own_pyramids()
    decoder = randomized(config.build(**everywhere(SMALL, CHANNELS)))
    output = decoder(features)
    final, auxiliary = written_out(decoder, features)
    assert set(output.auxiliary[0].prediction) == set(auxiliary) == set(CHANNELS)
    pairs = [(output.final[task], x) for task, x in final.items()]
    pairs += [(output.auxiliary[0].prediction[task], x) for task, x in auxiliary.items()]
    for found, expected in pairs:
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)
    parameters = list(decoder.parameters())
    one, two = (torch.autograd.grad(sum((pair[i] ** 2).sum() for pair in pairs), parameters) for i in (0, 1))
    for (name, _), x, y in zip(decoder.named_parameters(), one, two, strict=True):
        assert torch.allclose(x, y, rtol=1e-7, atol=1e-7 * float(y.abs().max() + 1)), name


def test_contexts_have_no_effect_at_first_without_gain():
    features = own_pyramids()
    decoder = ATRC.Config(contexts=ALL_KINDS, dropout=0.0, gain=0.0).build(**everywhere(SMALL, CHANNELS)).double()
    before = decoder(features).final["semseg"]
    for pair in decoder.pairs["semseg"].values():
        torch.nn.init.normal_(pair.value[0].weight)
    assert torch.equal(decoder(features).final["semseg"], before)


def test_the_neighborhood_is_an_unfolding():
    q, k, v = (torch.randn(2, 3, 5, 7, dtype=torch.float64, requires_grad=True) for _ in range(3))
    around = [F.unfold(x, 3, padding=1).view(2, 3, 9, 5, 7) for x in (k, v)]
    shares = (torch.einsum("bchw,bcnhw->bnhw", q, around[0]) / 3**0.5).softmax(1)
    expected = torch.einsum("bnhw,bcnhw->bchw", shares, around[1])
    assert torch.allclose(neighborhood_attention(q, k, v, 3), expected, rtol=1e-12, atol=1e-12)


# -- the search -------------------------------------------------------------------------------------------------------


def searching(**options) -> ATRC:
    return ATRC.Config(contexts="search", search_passes=10, **options).build(**everywhere(SMALL, CHANNELS)).double()


def test_a_search_cools_down_and_is_penalized_for_entropy():
    decoder, features = searching(), own_pyramids()
    entropy = (6 * torch.log(torch.tensor(5.0)) + 3 * torch.log(torch.tensor(4.0))) / 9  # nothing is preferred
    for done in (0.0, 0.1, 0.2):
        temperature, penalty = decoder._search_state()
        assert temperature == pytest.approx(1 - 0.95 * done)
        assert float(penalty.detach()) == pytest.approx((-0.02 + 0.08 * done) * float(entropy), rel=1e-5)
    for _ in range(12):
        decoder._search_state()
    assert decoder._search_state()[0] == pytest.approx(0.05)
    output = decoder(features)
    output.penalty.backward(retain_graph=True)
    sum(x.sum() for x in output.final.values()).backward()
    assert all(p.grad is not None for name, p in decoder.named_parameters() if "preference" in name)
    assert decoder.eval()(features).penalty is None


def test_a_search_gives_a_genotype_that_builds():
    decoder, features = searching(regions={"depth": 4}), own_pyramids()
    kinds = {"semseg": (3, 0, 1), "depth": (4, 2, 0), "normals": (4, 3, 1)}
    for target, chosen in kinds.items():
        for (_, pair), kind in zip(decoder.pairs[target].items(), chosen, strict=True):
            with torch.no_grad():
                pair.choice.preference[pair.kinds.index(kind)] = 5.0
    genotype = decoder.genotype()
    assert genotype == "301 420 431"
    decoder(features)  # settles every pair
    with torch.no_grad():
        for pairs in decoder.pairs.values():
            for pair in pairs.values():
                pair.choice.preference.zero_()
    decoder.eval()
    discrete = ATRC.Config(contexts=genotype, regions={"depth": 4}).build(**everywhere(SMALL, CHANNELS)).double().eval()
    own = decoder.state_dict()
    for name in discrete.state_dict():  # of a mixture, the block in use; its values have no scale
        if name.startswith("pairs.") and name.split(".")[3] in ("query", "key", "value"):
            _, target, source, *rest = name.split(".")
            pair = decoder.pairs[target][source]
            block = pair.kinds.index(discrete.contexts[target][source]) - 1
            theirs = f"pairs.{target}.{source}.blocks.{block}.{'.'.join(rest)}"
            if theirs in own:
                discrete.get_parameter(name).data.copy_(own[theirs]) if "running" not in name and "num" not in name \
                    else discrete.get_buffer(name).copy_(own[theirs])
    for name in ("features", "regions", "heads"):
        getattr(discrete, name).load_state_dict({k: v for k, v in getattr(decoder, name).state_dict().items()
                                                 if k in getattr(discrete, name).state_dict()})
    x = {task: layers(stacked(features[task].maps)) for task, layers in decoder.features.items()}
    shares = {task: layers(stacked(features[task].maps)).flatten(2).softmax(-1)
              for task, layers in decoder.regions.items()}
    for target in kinds:
        for source, pair in discrete.pairs[target].items():
            arguments = x[target], x[source], shares[target], shares[source], 1.0
            assert torch.allclose(pair(*arguments), decoder.pairs[target][source](*arguments))


def test_a_settled_choice_stays():
    choice = Choice(3, 1.0)
    assert float(choice(1.0).detach().sum()) == pytest.approx(1) and not choice.settled.any()
    with torch.no_grad():
        choice.preference[1] = 2.0
    assert choice(1.0).tolist() == [0, 1, 0]
    with torch.no_grad():
        choice.preference[2] = 9.0
    assert choice(1.0).tolist() == [0, 1, 0] and choice.eval()(1.0).tolist() == [0, 1, 0]


# -- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "place"), [
    ({"contexts": "other"}, "decoder.contexts"), ({"contexts": "12 3"}, "decoder.contexts"),
    ({"contexts": "15 20"}, "decoder.contexts"), ({"contexts": ""}, "decoder.contexts"),
    ({"regions": {"depth": 0}}, "decoder.regions"), ({"width": 1}, "decoder.width"),
    ({"dropout": 1.0}, "decoder.dropout"), ({"gain": float("nan")}, "decoder.gain"),
    ({"auxiliary_weight": -1.0}, "decoder.auxiliary_weight"), ({"search_passes": 0}, "decoder.search_passes"),
    ({"search_rate": 0.0}, "decoder.search_rate")])
def test_bad_options(options, place):
    with pytest.raises(InputError, match=place):
        ATRC.Config(**options)


@pytest.mark.parametrize(("options", "message"), [
    ({"contexts": "12 30"}, "3 groups of 3 digits, for semseg, depth, normals"), ({"regions": {"sky": 3}}, "'sky'")])
def test_options_that_do_not_fit_the_tasks(options, message):
    with pytest.raises(InputError, match=message):
        ATRC.Config(**options).build(**everywhere(SMALL, CHANNELS))


def test_auxiliary_predictions_only_where_a_context_needs_regions():
    def predicted(**options) -> list[str]:
        return [task for extra in ATRC.Config(**options).build(**everywhere(SMALL, CHANNELS)).double()(
            own_pyramids()).auxiliary for task in extra.prediction]

    assert predicted(contexts="global") == [] and predicted(contexts="target_label") == list(CHANNELS)
    assert predicted(contexts="030/000/004") == ["semseg", "normals"]
    assert predicted(auxiliary_weight=0.0) == []


def test_every_variation_builds_and_runs():
    for config in replace(ATRC.Config(), contexts="search").ablation().values():
        output = config.build(**everywhere(SMALL, CHANNELS)).double()(own_pyramids())
        assert {task: x.shape[1] for task, x in output.final.items()} == CHANNELS
