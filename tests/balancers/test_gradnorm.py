"""GradNorm: against the paper's algorithm with its second differentiation, and on its toy problem."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from loss_toy import TASKS, Toy, build, descend
from torch import nn

from polyptych.balancers.gradnorm import GradNorm


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_it_is_the_papers_algorithm(optimizer, alpha):
    rate = 0.025 if optimizer == "adam" else 1e-3
    ours, theirs = Toy(), Toy()
    balancer = build(GradNorm.Config(alpha=alpha, optimizer=optimizer, learning_rate=rate, initial_steps=2,
                                     initial={"normals": 40.0}))
    w = torch.ones(3, dtype=torch.float64, requires_grad=True)
    mover = (torch.optim.Adam if optimizer == "adam" else torch.optim.SGD)([w], lr=rate)
    seen, layer, history = [], theirs.network["trunk"].weight, []
    for step in range(15):
        losses = torch.stack(theirs.losses(step))
        seen = [*seen, losses.detach()][:2]
        initial = torch.stack(seen).mean(0)
        initial[2] = 40.0
        parameters = list(theirs.network.parameters())
        gradients = torch.autograd.grad(w.detach() @ losses, parameters, retain_graph=True)
        sizes = torch.stack([torch.autograd.grad(w[t] * losses[t], layer, create_graph=True)[0].norm()
                             for t in range(3)])
        share = losses.detach() / initial
        target = sizes.detach().mean() * (share / share.mean()) ** alpha
        history.append(w.tolist())
        (w.grad,) = torch.autograd.grad((sizes - target).abs().sum(), w)
        mover.step()
        with torch.no_grad():
            w.clamp_(min=1e-4)
            w *= 3 / w.sum()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        descend(theirs.network, 0.02)

        ours.network.zero_grad()
        found = balancer.backward(dict(zip(TASKS, ours.losses(step), strict=True)), ours.network, None)
        descend(ours.network, 0.02)
        np.testing.assert_allclose([float(v) for v in found.values()], history[-1], rtol=1e-8)
    assert max(abs(a - b) for a, b in zip(history[0], history[-1], strict=True)) > 0.05
    for a, b in zip(ours.network.parameters(), theirs.network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.grid
def test_training_rates_come_together_where_losses_differ_by_a_hundred():
    """The problem of the picture in docs/images, smaller. The fast test above already compares with the paper."""
    place = Path(__file__).parents[2] / "benchmarks" / "gradnorm.py"
    specification = importlib.util.spec_from_file_location("gradnorm_benchmark", place)
    benchmark = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(benchmark)
    size = {"steps": 900, "width": 40, "inputs": 40}
    equal, _ = benchmark.train(benchmark.Equal.Config(), **size)
    balanced, weights = benchmark.train(GradNorm.Config(), **size)
    gap, before = ((rates[-100:, 0] - rates[-100:, 1]).mean().abs() for rates in (balanced, equal))
    assert before > 0.08 and gap < before / 4
    np.testing.assert_allclose(weights[-300:].mean(0), [200 / 101, 2 / 101], rtol=0.2)
    assert balanced[-100:].mean() < equal[-100:].mean()


def solve(balancer, norms, losses, tasks=TASKS):
    return balancer.solve(torch.tensor(norms, dtype=torch.float64).square().diag(),
                          torch.tensor(losses, dtype=torch.float64), tasks)


def test_equal_tasks_keep_equal_weights_and_one_task_keeps_one():
    balancer, alone = build(GradNorm.Config()), build(GradNorm.Config(), TASKS[:1])
    for loss in (3.0, 2.0, 1.0):
        torch.testing.assert_close(solve(balancer, [loss] * 3, [loss] * 3), torch.ones(3, dtype=torch.float64))
        torch.testing.assert_close(solve(alone, [loss], [loss], TASKS[:1]), torch.ones(1, dtype=torch.float64))


def test_weights_stay_positive_and_finite_with_losses_and_gradients_of_zero():
    balancer = build(GradNorm.Config(learning_rate=0.9))
    for step in range(12):
        weights = solve(balancer, [0.0, 5.0, 1e6], [0.0, 1.0, 3.0 * step])
        assert bool((weights > 0).all()) and float(weights.sum()) == pytest.approx(3)


def test_order_of_tasks_does_not_matter():
    first, second = build(GradNorm.Config()), build(GradNorm.Config(), TASKS[::-1])
    for step in range(5):
        norms, losses = [1.0, 20.0, 3.0], [2.0, 30.0 / (step + 1), 1.0]
        weights = solve(first, norms, losses)
        torch.testing.assert_close(solve(second, norms[::-1], losses[::-1], TASKS[::-1]), weights.flip(0))


def test_a_task_without_labels_does_not_move_and_the_others_keep_their_sum():
    balancer = build(GradNorm.Config())
    for step in range(4):
        solve(balancer, [1.0, 20.0, 3.0], [2.0, 9.0 - step, 1.0])
    state = {key: value[1].clone() for key, value in balancer.named_buffers() if value.shape[:1] == (3,)}
    assert len(state) >= 6  # weights, initial losses, how many of them, and Adam's
    for _ in range(3):
        weights = solve(balancer, [1.0, 3.0], [2.0, 1.0], (TASKS[0], TASKS[2]))
    assert float(weights.sum()) == pytest.approx(3 - float(state["weights"]))
    for key, value in balancer.named_buffers():
        if key in state:
            assert torch.equal(value[1], state[key]), key


def test_a_saved_state_goes_on_exactly():
    first, second = build(GradNorm.Config(initial_steps=4)), build(GradNorm.Config(initial_steps=4))
    for step in range(3):
        solve(first, [1.0, 20.0, 3.0], [2.0, 9.0 - step, 1.0])
    second.load_state_dict({key: value.clone() for key, value in first.state_dict().items()})
    for step in range(3):
        now = [1.0 + step, 2.0, 3.0], [2.0, 9.0, 1.0 + step]
        assert torch.equal(solve(first, *now), solve(second, *now))


@pytest.mark.parametrize(("config", "said"), [
    (GradNorm.Config(alpha=-1.0), "balancer.alpha: got -1; needs a number of at least 0"),
    (GradNorm.Config(learning_rate=math.nan), "balancer.learning_rate: got nan; needs a number above 0"),
    (GradNorm.Config(initial_steps=0), "balancer.initial_steps: got 0; needs at least 1 step"),
    (GradNorm.Config(initial={"depth": 0.0}), "balancer.initial of 'depth': got 0; needs a number above 0"),
    (GradNorm.Config(initial={"dept": 1.0}), "balancer.initial: got an entry for 'dept'"),
])
def test_refusals(config, said):
    with pytest.raises(ValueError) as error:
        build(config)
    assert said in str(error.value)


def test_the_layer_is_the_last_shared_one():
    """Norms are those of the last shared layer, not of the first one and not of the heads."""
    network = nn.ModuleDict({"trunk": nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 4)), "a": nn.Linear(4, 1),
                             "b": nn.Linear(4, 1)})
    features = network["trunk"](torch.randn(6, 2, generator=torch.Generator().manual_seed(0)))
    losses = {task: network[task](features).square().mean() for task in "ab"}
    expected = {task: torch.autograd.grad(loss, network["trunk"][2].weight, retain_graph=True)[0].norm()
                for task, loss in losses.items()}
    balancer = build(GradNorm.Config(), ("a", "b"))
    balancer.backward(losses, network, None)
    for task, norm in expected.items():
        assert balancer.diagnostics[f"gradient_norm/{task}"] == pytest.approx(float(norm))
