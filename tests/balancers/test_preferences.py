"""Preferences of gradient methods, given or found by a balancer of losses: where they multiply losses, the step is that
of the method on those losses, to the bit; where they stand in the equations, it is that of the equations."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

from polyptych.balancers._base import CATALOG, Balancer
from polyptych.balancers._gradients import GramBalancer
from polyptych.errors import InputError
from polyptych.record import chosen, decode, encode
from polyptych.types import Output

TASKS = ("a", "b", "c")
WISHES = {"a": 3.0, "b": 0.5}
STANDARD = dict.fromkeys(TASKS, 1.0)
METHODS = [name for name in CATALOG.names() if issubclass(CATALOG.load(name), GramBalancer)]
HOW = {name: chosen(Balancer.Config, name, {}, "").build(standard_weights=STANDARD).preferring for name in METHODS}


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.heads = nn.Conv2d(3, 5, 1), nn.ModuleDict({task: nn.Conv2d(5, 1, 1) for task in TASKS})

    def forward(self, x: Tensor) -> Output:
        features = self.trunk(x).tanh()
        return Output({task: head(features) for task, head in self.heads.items()}, shared=(features,))


X = torch.randn(6, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
SIZES = {"a": 1.0, "b": 4.0, "c": 0.2}


def passes_of(network: nn.Module, factors: dict[str, float] | None = None, parts: int = 1) -> list[Callable]:
    def run(x: Tensor, sign: Tensor) -> tuple[dict[str, Tensor], Output]:
        output = network(x)
        losses = {task: SIZES[task] * (made * (1 + k) - sign).square().mean() / parts
                  for k, (task, made) in enumerate(output.items())}
        return {task: loss * (factors or {}).get(task, 1.0) for task, loss in losses.items()}, output

    signs = torch.where(torch.arange(6) % 2 == 0, 1.0, -1.0).double().view(6, 1, 1, 1)
    return [lambda x=x, s=s: run(x, s) for x, s in zip(X.chunk(parts), signs.chunk(parts), strict=True)]


def built(name: str, **options) -> tuple[Balancer, nn.Module]:
    config = chosen(Balancer.Config, name, options, "balancer")
    torch.manual_seed(5)
    return config.build(standard_weights=STANDARD, likelihoods=dict.fromkeys(TASKS, "gaussian")), Network().double()


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())


def test_how_preferences_enter() -> None:
    assert {name for name, how in HOW.items() if how == "never"} == {"nash_mtl", "imtl", "gradnorm", "db_mtl"}
    assert {name for name, how in HOW.items() if how == "problem"} == {"aligned_mtl", "config"}
    assert built("fairgrad", alpha=1.0)[0].preferring == "never"


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("name", [name for name, how in HOW.items() if how == "losses"])
def test_preferences_multiply_losses(name: str, parts: int) -> None:
    balancer, network = built(name, preferences=WISHES)
    plain, twin = built(name)
    for _ in range(2):  # methods that remember do so of the same losses
        losses, weights = balancer.accumulate(passes_of(network, parts=parts), network)
        scaled, expected = plain.accumulate(passes_of(twin, WISHES, parts), twin)
    assert same(gradients(network), gradients(twin))
    assert weights == {task: expected[task] * WISHES.get(task, 1.0) for task in TASKS}
    raw = passes_of(Network().double(), parts=parts)
    assert all(torch.equal(losses[task], sum((run()[0][task].detach() for run in raw), torch.zeros(()).double()))
               for task in TASKS)
    assert not all(torch.equal(losses[task], scaled[task]) for task in TASKS)


@pytest.mark.parametrize("name", [name for name, how in HOW.items() if how == "problem"])
def test_preferences_stand_in_the_problem(name: str) -> None:
    balancer, network = built(name, preferences=WISHES, level="parameters")
    balancer.backward(passes_of(network)[0]()[0], network)
    losses, _ = passes_of(Network().double())[0]()
    twin = Network().double()
    losses, _ = passes_of(twin)[0]()
    rows = torch.stack([torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(twin.trunk.parameters()),
                                                                            retain_graph=True)])
                        for loss in losses.values()])
    wishes = torch.tensor([WISHES.get(task, 1.0) for task in TASKS], dtype=torch.float64)
    if name == "aligned_mtl":
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        transform = values.min().sqrt() * vectors @ (1 / values.sqrt()).diag() @ vectors.T
        expected = transform @ wishes @ rows
    else:
        units = rows / rows.norm(dim=1, keepdim=True)
        direction = torch.linalg.pinv(units) @ wishes
        direction = direction / direction.norm()
        expected = (rows @ direction).sum() * direction
        assert torch.allclose(units @ expected / wishes, (units @ expected / wishes)[:1])  # cosines are as wished
    found = torch.cat([p.grad.flatten() for p in network.trunk.parameters()])
    assert torch.allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("weighing, options", [("dwa", {"window": 1}), ("uncertainty", {}), ("famo", {}), ("rlw", {}),
                                               ("fixed", {}), ("gls", {})])
def test_a_weighing_under_a_gradient_method(weighing: str, options: dict, parts: int) -> None:
    """Its weights of the step are the factors of the step's losses, and it learns as it does by itself."""
    balancer, network = built("pcgrad", weighing=weighing, weighing_options=options, level="parameters")
    alone, twin = built(weighing, **options)
    alone.seed = balancer.weighing.seed
    method, third = built("pcgrad", level="parameters")
    method.seed = balancer.seed
    for _ in range(4):
        _, weights = balancer.accumulate(passes_of(network, parts=parts), network)
        _, factors = alone.accumulate(passes_of(twin, parts=parts), twin)
        factors = {task: float(x) for task, x in factors.items()}
        _, expected = method.accumulate(passes_of(third, factors, parts), third)
        assert all(torch.allclose(x, gradients(third)[name], rtol=1e-12) for name, x in gradients(network).items())
        assert {t: float(w) for t, w in weights.items()} == pytest.approx({t: expected[t] * factors[t] for t in TASKS})
        assert balancer.wants_after_step == alone.wants_after_step
        for one, of in ((balancer, network), (alone, twin)):
            for p, q in zip(one.parameters(), alone.parameters(), strict=True):
                assert torch.equal(p.grad, q.grad)
            one.after_step(lambda of=of: {task: x.detach() / 2 for task, x in passes_of(of)[0]()[0].items()})
        for model in (network, twin, third):
            model.zero_grad()
        for one in (balancer, alone):
            for p in one.parameters():
                with torch.no_grad():
                    p -= 0.1 * p.grad
                p.grad = None
    assert len([*balancer.parameters()]) == len([*alone.parameters()])


def test_state_and_choices_survive() -> None:
    balancer, network = built("cagrad", weighing="dwa", weighing_options={"window": 2}, preferences={"b": 2.0})
    for _ in range(5):
        balancer.accumulate(passes_of(network), network)
        network.zero_grad()
    config = balancer.config
    assert decode(Balancer.Config, encode(config), "") == config
    other, _ = built("cagrad", weighing="dwa", weighing_options={"window": 2}, preferences={"b": 2.0})
    other.load_state_dict(copy.deepcopy(balancer.state_dict()))
    twin = copy.deepcopy(network)
    assert balancer.accumulate(passes_of(network), network) == other.accumulate(passes_of(twin), twin)
    assert balancer.diagnostics["preference/b"] != balancer.diagnostics["preference/a"]
    old = {name: value for name, value in encode(config).items()
           if name not in ("preferences", "weighing", "weighing_options")}
    assert decode(Balancer.Config, old, "").preferences == {}  # a record of 0.1.0


def test_epochs_and_validations_reach_the_weighing() -> None:
    balancer, _ = built("mgda", weighing="dwa")
    balancer.on_epoch_end({"a": 1.0, "b": 1.0, "c": 1.0})
    balancer.on_epoch_end({"a": 0.5, "b": 1.0, "c": 1.0})
    assert float(balancer.weighing.recent[0, 1]) == 0.5
    balancer.on_validation({})


@pytest.mark.parametrize("name, options, said", [
    ("nash_mtl", {"preferences": {"a": 2.0}}, "scale of the losses"),
    ("gradnorm", {"weighing": "dwa"}, "balancer.weighing"), ("fairgrad", {"alpha": 1.0, "weighing": "dwa"}, "FairGrad"),
    ("cr_mogm", {"method": "nash_mtl", "preferences": {"a": 2.0}}, "CRMOGM"),
    ("pcgrad", {"preferences": {"d": 1.0}}, "'d'"), ("pcgrad", {"preferences": {"a": 0.0}}, "above 0"),
    ("pcgrad", {"preferences": {"a": math.inf}}, "above 0"), ("pcgrad", {"weighing": "mgda"}, "weights losses"),
    ("pcgrad", {"weighing": "dva"}, "dwa"), ("pcgrad", {"weighing": "dwa", "weighing_options": {"temp": 1.0}}, "temp")])
def test_what_makes_no_sense_is_said(name, options, said) -> None:
    with pytest.raises(InputError, match=said):
        built(name, **options)


@pytest.mark.parametrize("name", [name for name, how in HOW.items() if how == "never" and name != "gradnorm"])
def test_those_that_refuse_would_not_change(name: str) -> None:
    """Their step in the shared parameters is the same whatever factors the losses have."""
    options = {"level": "parameters"} | ({"scale_losses": False} if name == "imtl" else {})
    (one, network), (other, twin) = built(name, **options), built(name, **options)
    one.accumulate(passes_of(network), network)
    other.accumulate(passes_of(twin, {"a": 3.0, "b": 0.5}), twin)
    if name == "db_mtl":  # of the size of the longest, which is the same too
        assert torch.allclose(network.trunk.weight.grad, twin.trunk.weight.grad, rtol=1e-6)
    directions = [model.trunk.weight.grad / model.trunk.weight.grad.norm() for model in (network, twin)]
    assert torch.allclose(*directions, rtol=1e-6)


def test_every_method_says_how() -> None:
    assert {field.name for field in fields(GramBalancer.Config)} >= {"preferences", "weighing", "weighing_options"}
    assert set(HOW.values()) == {"losses", "problem", "never"}
