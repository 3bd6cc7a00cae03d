"""JTRL against its equations: who sees whose state, and the task-attentional module."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transcription import (
    CHANNELS,
    SMALL,
    block,
    conv,
    conv_norm_relu,
    enlarge,
    everywhere,
    own_pyramids,
    pyramid,
    randomized,
)

from polyptych.decoders.jtrl import JTRL, TaskAttention
from polyptych.errors import InputError
from polyptych.types import FeatureSpec, TaskFeatures


def attended(states: list[Tensor], layers: TaskAttention) -> Tensor:
    scores = conv(torch.cat(states, dim=1), layers.balance).exp().chunk(len(states), dim=1)
    balanced = [score / sum(scores) * state for score, state in zip(scores, states, strict=True)]
    full = conv_norm_relu(torch.cat(balanced, dim=1), layers.join)
    half = conv(full, layers.down[0]).relu()
    quarter = conv(half, layers.down[1]).relu()
    half = conv(enlarge(quarter, *half.shape[2:]), layers.up[0]).relu()
    attention = 1 / (1 + (-conv(enlarge(half, *full.shape[2:]), layers.up[1])).exp())
    return conv_norm_relu(torch.cat([(1 + attention) * state for state in states], dim=1), layers.merge)


def transcribed(decoder: JTRL, features: TaskFeatures) -> list[dict[str, Tensor]]:
    """Predictions of every scale, coarse to fine."""
    tasks, predictions, h = list(features), [], {}
    for s in (2, 1, 0):
        u = {}
        for task in tasks:
            x, enter = features[task].maps[s], decoder.enter[s][task]
            u[task] = conv_norm_relu(x, enter) if s == 2 else block(
                torch.cat([enlarge(h[task], *x.shape[2:]), x], dim=1), enter)
        said = {}
        for task in tasks:
            said[task] = attended([said.get(other, u[other]) for other in tasks], decoder.attend[s][task])
        h = said
        predictions.append({task: conv(h[task], decoder.predict[s][task]) for task in tasks})
    return predictions


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("channels", [CHANNELS, {"depth": 1}])
def test_is_its_formula(channels, shared):
    decoder = randomized(JTRL.Config(width=4).build(**everywhere(SMALL, channels)))
    features = TaskFeatures(dict.fromkeys(channels, pyramid())) if shared else own_pyramids(channels)
    output = decoder(features)
    *coarser, final = transcribed(decoder, features)
    assert [extra.weight for extra in output.auxiliary] == [1, 1]
    for got, expected in zip([*(a.prediction for a in output.auxiliary), output.final], [*coarser, final], strict=True):
        assert list(got) == list(channels)
        assert all(torch.allclose(got[task], expected[task], rtol=1e-8, atol=1e-8) for task in channels)


def test_the_balance_of_two_tasks_is_a_sigmoid_and_its_complement():
    """The paper's form: B = sigmoid(conv) for one task and 1 - B for the other."""
    module = randomized(TaskAttention(2, 4))
    states = torch.randn(2, 2, 4, 6, 7, dtype=torch.float64)
    scores = module.balance(states.flatten(1, 2)).view_as(states)
    b = torch.sigmoid(scores[:, 0] - scores[:, 1])
    balanced = torch.cat([b * states[:, 0], (1 - b) * states[:, 1]], dim=1)
    seen = []
    module.join.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    module(states)
    assert torch.allclose(seen[0], balanced)


def test_tasks_take_turns():
    """At the coarsest scale the first task does not hear the second one's attention, the second hears the first's."""
    decoder = randomized(JTRL.Config(width=4).build(**everywhere(SMALL, {"depth": 1, "semseg": 5})))
    coarsest = decoder(TaskFeatures(dict.fromkeys(("depth", "semseg"), pyramid()))).auxiliary[0].prediction

    def hears(listener: str, speaker: str) -> bool:
        weight = decoder.attend[2][speaker].merge[0].weight
        gradient, = torch.autograd.grad(coarsest[listener].sum(), weight, retain_graph=True, allow_unused=True)
        return gradient is not None

    assert hears("semseg", "depth") and not hears("depth", "semseg")


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 2), (7, 9)])
def test_the_hourglass_takes_any_size(size):
    module = TaskAttention(3, 4).eval()
    assert module(torch.randn(1, 3, 4, *size)).shape == (1, 4, *size)


def test_a_small_image_alone_in_a_batch_trains():
    spec = FeatureSpec((4, 8), (16, 32))
    decoder = JTRL.Config(width=4).build(**everywhere(spec, CHANNELS)).double().train()
    maps = pyramid(spec=spec, sizes=((4, 4), (2, 2)))
    maps.maps = tuple(x[:1] for x in maps.maps)
    assert decoder(TaskFeatures(dict.fromkeys(CHANNELS, maps))).final["depth"].isfinite().all()


def test_one_scale():
    spec = FeatureSpec((6,), (16,))
    decoder = JTRL.Config(width=4).build(**everywhere(spec, CHANNELS)).double()
    output = decoder(TaskFeatures(dict.fromkeys(CHANNELS, pyramid(spec=spec, sizes=((4, 5),)))))
    assert output.auxiliary == [] and output.final["semseg"].shape == (2, 5, 4, 5)


def test_bad_width_is_refused():
    with pytest.raises(InputError, match=r"decoder\.width: got 0; needs 1 or more"):
        JTRL.Config(width=0)
