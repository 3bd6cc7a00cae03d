"""The engine against gradients taken one by one: levels, accumulation and interacting tasks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_network import (
    CONSTANTS,
    TASKS,
    Constant,
    ConstantGram,
    ConstantRows,
    build,
    gradients,
    losses_of,
    problem,
    rows_of,
    step,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from polyptych.balancers._engine import CHUNK, gram, reach, undisturbed
from polyptych.balancers._gradients import JacobianBalancer
from polyptych.balancers._weighing import LossBalancer

TRUNK = {f"{part}.{kind}" for part in ("first", "norm", "second") for kind in ("weight", "bias")}
SHARED = TRUNK | {"a.weight", "a.bias"}  # task b reads what task a predicts
LEVELS = ["parameters", "representation", "layer"]


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("weight_heads", [True, False])
@pytest.mark.parametrize(("kind", "level"), [(ConstantGram, level) for level in LEVELS]
                         + [(ConstantRows, level) for level in LEVELS[:2]])
def test_every_level_gives_the_weighed_sum(kind, level, weight_heads, parts) -> None:
    network, image, target = problem()
    rows = rows_of(network, losses_of(network, image, target)[0])
    weighed = {"parameters": SHARED, "layer": SHARED, "representation": TRUNK}[level]
    losses, weights = step(build(kind, level=level, weight_heads=weight_heads), network, image, target, parts)
    found = gradients(network)
    assert found.keys() == {name for name, _ in network.named_parameters() if not name.startswith("unused")}
    for name, gradient in found.items():
        weight = CONSTANTS if weight_heads or name in weighed else (1.0, 1.0, 1.0)
        expected = sum(w * rows[task][name] for w, task in zip(weight, TASKS, strict=True) if name in rows[task])
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-11, msg=name)
    assert weights == dict(zip(TASKS, CONSTANTS, strict=True))
    for task, loss in losses_of(network, image, target)[0].items():
        torch.testing.assert_close(losses[task], loss.detach())


@pytest.mark.parametrize("parts", [1, 4])
def test_the_matrix_of_the_parameters(parts) -> None:
    network, image, target = problem()
    balancer = build(ConstantGram)
    step(balancer, network, image, target, parts)
    rows = rows_of(network, losses_of(network, image, target)[0])
    flat = torch.stack([torch.cat([rows[t].get(name, torch.zeros_like(p)).flatten()
                                   for name, p in network.named_parameters() if name in SHARED]) for t in TASKS])
    torch.testing.assert_close(balancer.asked[0], flat @ flat.T)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_matrix_of_the_representation_leaves_out_the_way_from_map_to_map(parts) -> None:
    network, image, target = problem()
    balancer = build(ConstantGram, level="representation")
    step(balancer, network, image, target, parts)
    fine = network.norm(network.first(image)).tanh()
    maps = [x.detach().requires_grad_() for x in (fine, network.second(fine).tanh())]
    a = network.a(maps[1])
    final = {"a": a, "b": network.b(maps[1]) + network.from_a(a.tanh()), "c": network.c(maps[0])[..., ::2, ::2]}
    flat = []
    for task in TASKS:
        loss = (final[task] - target[task]).pow(2).sum() / 4
        found = torch.autograd.grad(loss, maps, retain_graph=True, allow_unused=True)
        flat.append(torch.cat([(torch.zeros_like(x) if g is None else g).flatten()
                               for g, x in zip(found, maps, strict=True)]))
    torch.testing.assert_close(balancer.asked[0], torch.stack(flat) @ torch.stack(flat).T)


@pytest.mark.parametrize("parts", [1, 2])
def test_the_matrix_of_the_layer_is_of_the_last_layer_that_all_tasks_reach(parts) -> None:
    network, image, target = problem()
    balancer = build(ConstantGram, level="layer")
    step(balancer, network, image, target, parts)
    rows = rows_of(network, losses_of(network, image, target)[0])  # task c does not use the second convolution
    flat = torch.stack([rows[task]["first.weight"].flatten() for task in TASKS])
    torch.testing.assert_close(balancer.asked[0], flat @ flat.T)


@pytest.mark.parametrize(("level", "expected"), [("parameters", 3), ("representation", 1), ("layer", 4)])
def test_how_often_a_backward_pass_goes_through_the_trunk(level, expected) -> None:
    network, image, target = problem()
    passed = []

    def watch(module, given, made) -> None:
        made.register_hook(lambda gradient: passed.append(1))

    network.first.register_forward_hook(watch)
    step(build(ConstantGram, level=level), network, image, target)
    assert len(passed) == expected  # level layer: three vector products with the first layer, and the weighed sum


@pytest.mark.parametrize("kind", [Constant, ConstantGram, ConstantRows])
@pytest.mark.parametrize("scale", [64.0, torch.tensor(64.0)])
def test_scale_multiplies_gradients_and_nothing_else(kind, scale) -> None:
    network, image, target = problem()
    plain, scaled = build(kind), build(kind)
    step(plain, network, image, target)
    expected = {name: 64 * g.clone() for name, g in gradients(network).items()}
    _, weights = step(scaled, network, image, target, scale=scale)
    for name, gradient in gradients(network).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)
    assert {task: float(w) for task, w in weights.items()} == dict(zip(TASKS, CONSTANTS, strict=True))
    if kind is not Constant:
        torch.testing.assert_close(scaled.asked[0], plain.asked[0])


@pytest.mark.parametrize("kind", [Constant, ConstantGram, ConstantRows])
def test_inactive_tasks_take_no_part(kind) -> None:
    network, image, target = problem()

    def passes():
        losses, output = losses_of(network, image, target)
        return {**losses, "b": torch.zeros((), dtype=torch.float64)}, output

    balancer = build(kind)
    step(balancer, network, image, target)  # sharing is measured with every task
    network.zero_grad()
    losses, weights = balancer.accumulate([passes], network, active={"a", "c"})
    assert float(losses["b"]) == 0 and float(weights["b"]) == 0
    assert float(weights["a"]) == CONSTANTS[0] and float(weights["c"]) == CONSTANTS[2]
    if kind is not Constant:
        assert balancer.asked[2] == ("a", "c")
    network.zero_grad()
    rows = rows_of(network, losses_of(network, image, target)[0])
    balancer.accumulate([passes], network, active={"a", "c"})
    torch.testing.assert_close(network.first.weight.grad, CONSTANTS[0] * rows["a"]["first.weight"]
                               + CONSTANTS[2] * rows["c"]["first.weight"])


@pytest.mark.parametrize("kind", [Constant, ConstantGram, ConstantRows])
def test_a_step_without_any_label_has_gradients_of_zero(kind) -> None:
    network, image, _ = problem()
    balancer = build(kind)
    output = network(image)
    balancer.prepare(network, output)
    losses = {task: 0 * output.final[task].sum() for task in TASKS}
    assert {float(w) for w in balancer.backward(losses, network, output, active=()).values()} == {0.0}
    assert all(not g.any() for g in gradients(network).values()) and gradients(network)


@pytest.mark.parametrize("weight_heads", [True, False])
@pytest.mark.parametrize("level", LEVELS)
def test_between_two_computations_the_weights_stay(level, weight_heads) -> None:
    network, image, target = problem()
    every, stale = (build(ConstantGram, level=level, weight_heads=weight_heads, every=n) for n in (1, 3))
    asked = []
    for number in range(5):
        step(every, network, image, target)
        expected = {name: g.clone() for name, g in gradients(network).items()}
        stale.asked = None
        step(stale, network, image, target)
        asked.append(stale.asked is not None)
        for name, gradient in gradients(network).items():
            torch.testing.assert_close(gradient, expected[name], msg=f"{number} {name}")
    assert asked == [True, False, False, True, False]


@pytest.mark.parametrize("kind", [Constant, ConstantGram, ConstantRows])
def test_gradients_add_to_those_that_are_there(kind) -> None:
    network, image, target = problem()
    balancer = build(kind)
    step(balancer, network, image, target)
    once = {name: g.clone() for name, g in gradients(network).items()}
    balancer.backward(*(lambda made: (made[0], network, made[1]))(losses_of(network, image, target)))
    for name, gradient in gradients(network).items():
        torch.testing.assert_close(gradient, 2 * once[name], msg=name)


@pytest.mark.parametrize("level", LEVELS)
def test_shared_gradients_are_clipped_and_heads_are_not(level) -> None:
    network, image, target = problem()
    step(build(ConstantGram, level=level), network, image, target)
    free = {name: g.clone() for name, g in gradients(network).items()}
    step(build(ConstantGram, level=level, clip_shared=0.01), network, image, target, scale=8.0)
    found = gradients(network)
    norm = sum(found[name].square().sum() for name in SHARED).sqrt()
    assert float(norm) == pytest.approx(8 * 0.01, rel=1e-3)
    torch.testing.assert_close(found["c.weight"], 8 * free["c.weight"])


@pytest.mark.parametrize(("sum_to", "total"), [("mean", 1.0), ("sum", 3.0), ("native", sum(CONSTANTS))])
def test_the_scale_of_the_weights(sum_to, total) -> None:
    network, image, target = problem()
    _, weights = step(build(ConstantGram, sum_to=sum_to), network, image, target)
    assert sum(weights.values()) == pytest.approx(total)
    assert weights["b"] / weights["a"] == pytest.approx(4)


@pytest.mark.parametrize("kind", [Constant, ConstantGram, ConstantRows])
def test_what_is_not_finite_gives_equal_weights_for_one_step(kind, monkeypatch) -> None:
    network, image, target = problem()
    balancer = build(kind)
    rows = rows_of(network, losses_of(network, image, target)[0])
    with monkeypatch.context() as patch:
        patch.setattr("small_network.CONSTANTS", (1.0, float("nan"), 1.0))
        _, weights = step(balancer, network, image, target)
    assert {float(w) for w in weights.values()} == {1.0}
    torch.testing.assert_close(network.first.weight.grad, sum(rows[task]["first.weight"] for task in TASKS))
    step(balancer, network, image, target)
    assert float(balancer.diagnostics["fallbacks"]) == 1


def test_rows_that_are_not_finite_never_reach_a_solver() -> None:
    network, image, target = problem()
    balancer = build(ConstantGram)
    target["b"] = target["b"] * float("inf")
    _, weights = step(balancer, network, image, target)
    assert not hasattr(balancer, "asked") and set(weights.values()) == {1.0} and balancer.fallbacks == 1


def test_diagnostics_are_norms_and_cosines() -> None:
    network, image, target = problem()
    balancer = build(ConstantGram)
    step(balancer, network, image, target)
    inner = balancer.asked[0]
    assert balancer.diagnostics["gradient_norm/b"] == pytest.approx(float(inner[1, 1].sqrt()))
    assert balancer.diagnostics["cosine/a/c"] == pytest.approx(float(inner[0, 2] / (inner[0, 0] * inner[2, 2]).sqrt()))


def test_frozen_parameters_stay_out() -> None:
    network, image, target = problem()
    network.first.requires_grad_(False)
    balancer = build(ConstantGram)
    step(balancer, network, image, target)
    assert network.first.weight.grad is None
    assert {id(p) for p in balancer.reach.shared} == {
        id(p) for name, p in network.named_parameters() if name in SHARED and not name.startswith("first")}
    assert str(balancer.reach) == "244 shared parameters, private a 0, b 20, c 10, unused 6"


@pytest.mark.parametrize("level", LEVELS)
def test_activation_checkpointing_changes_nothing(level) -> None:
    network, image, target = problem()
    step(build(ConstantGram, level=level), network, image, target)
    expected = {name: g.clone() for name, g in gradients(network).items()}
    convolve = network.second.forward
    network.second.forward = lambda x: checkpoint(convolve, x, use_reentrant=False)
    step(build(ConstantGram, level=level), network, image, target)
    for name, gradient in gradients(network).items():
        torch.testing.assert_close(gradient, expected[name], msg=name)


# -- losses --------------------------------------------------------------------------------------------------------


class Learned(LossBalancer):
    """exp(s) L - s, and a product, so that weights depend on all losses of the step."""

    def __init__(self, config, *, standard_weights):
        super().__init__(config, standard_weights=standard_weights)
        self.s = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def objective(self, losses):
        values = torch.stack(list(losses.values()))
        return (self.s.exp() * values - self.s).sum() + values.prod()


def test_learned_weights_see_the_whole_step_once() -> None:
    """The derivatives of the objective are those of the joined batch, whatever the number of micro-batches."""
    network, image, target = problem()
    found = []
    for parts in (1, 2, 4):
        balancer = build(Learned)
        _, weights = step(balancer, network, image, target, parts)
        found.append((weights, balancer.s.grad, gradients(network)))
    for weights, own, others in found[1:]:
        torch.testing.assert_close(weights, found[0][0])
        torch.testing.assert_close(own, found[0][1])
        for name, gradient in others.items():
            torch.testing.assert_close(gradient, found[0][2][name], msg=name)
    network.zero_grad()
    balancer = build(Learned)
    balancer.objective(losses_of(network, image, target)[0]).backward()
    torch.testing.assert_close(found[0][1], balancer.s.grad)
    for name, gradient in gradients(network).items():
        torch.testing.assert_close(found[0][2][name], gradient, msg=name)


def test_the_scale_of_float16_reaches_learned_weights() -> None:
    network, image, target = problem()
    plain, scaled = build(Learned), build(Learned)
    step(plain, network, image, target)
    step(scaled, network, image, target, scale=torch.tensor(16.0))
    torch.testing.assert_close(scaled.s.grad, 16 * plain.s.grad)


def test_weights_that_need_no_losses_spare_the_second_pass() -> None:
    network, image, target = problem()
    calls = []
    network.first.register_forward_hook(lambda *_: calls.append(1))
    balancer = build(Constant)
    step(balancer, network, image, target, parts=2)
    balancer.needs_losses = False
    step(balancer, network, image, target, parts=2)
    assert len(calls) == 4 + 2


def test_a_survey_leaves_no_trace() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    with undisturbed(network):
        first = network(torch.ones(2, 3, 4, 4) * torch.rand(2, 3, 4, 4))
    torch.testing.assert_close(dict(network.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(network(torch.ones(2, 3, 4, 4) * torch.rand(2, 3, 4, 4)), first)


# -- state ---------------------------------------------------------------------------------------------------------


class Remembering(JacobianBalancer):
    lazy_buffers = ("average",)

    def allocate(self, parameters, device):
        if getattr(self, "average", None) is None:
            self.register_buffer("average", torch.zeros(3, parameters, device=device, dtype=torch.float64))

    def combine(self, rows, losses, tasks):
        self.average[self.positions(tasks)] += rows
        return self.average.sum(0), torch.ones(len(tasks))


def test_a_fresh_balancer_loads_buffers_that_it_does_not_have_yet() -> None:
    network, image, target = problem()
    balancer = build(Remembering)
    step(balancer, network, image, target)
    fresh = build(Remembering)
    fresh.load_state_dict({name: value.clone() for name, value in balancer.state_dict().items()})
    assert (fresh.steps, fresh.seed) == (1, balancer.seed)
    step(balancer, network, image, target)
    expected = {name: g.clone() for name, g in gradients(network).items()}
    step(fresh, network, image, target)
    torch.testing.assert_close(gradients(network), expected, rtol=0, atol=0)


def test_random_numbers_belong_to_the_step() -> None:
    network, image, target = problem()
    torch.manual_seed(3)
    balancer = build(ConstantGram)
    first = torch.rand(5, generator=balancer.random())
    torch.rand(7)
    assert torch.equal(torch.rand(5, generator=balancer.random()), first)
    step(balancer, network, image, target)
    second = torch.rand(5, generator=balancer.random())
    assert not torch.equal(second, first)
    fresh = build(ConstantGram)
    fresh.load_state_dict(balancer.state_dict())
    assert torch.equal(torch.rand(5, generator=fresh.random()), second)


def test_state_stays_where_it_was_made() -> None:
    assert build(ConstantGram).to(torch.float32).kept_weights.dtype == torch.float64


def test_a_step_in_splits_keeps_them_apart() -> None:
    network, image, target = problem()
    balancer = build(ConstantRows)
    balancer.splits, balancer.combine = 2, lambda rows, losses, tasks: (rows[1, 2], torch.ones(3))
    step(balancer, network, image, target, parts=4)
    expected = sum(rows_of(network, losses_of(network, image, target, slice(i, i + 1))[0])["c"]["first.weight"]
                   for i in (1, 3))
    torch.testing.assert_close(network.first.weight.grad, expected)


# -- parts ---------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.sampled_from([1, 7, CHUNK, CHUNK + 3]), st.integers(0, 99))
def test_inner_products_in_float64(count, size, seed) -> None:
    rows = torch.randn(count, size, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(gram(list(rows)), rows.double() @ rows.double().T, rtol=1e-12, atol=1e-10)


def test_reach_of_one_task_is_the_trunk() -> None:
    network, image, _ = problem()
    output = network(image)
    found = reach(network, {"a": [output.final["a"]]}, output.shared)
    assert len(found.shared) == 6 and len(found.private["a"]) == 2 and len(found.heads["a"]) == 2
