"""Steps with equal weights because something was not finite: what counts as one, and that the count is kept."""

from __future__ import annotations

import pytest
import torch
from small_network import Constant, ConstantGram, ConstantRows, build, gradients, problem, step

KINDS = [(ConstantGram, "parameters"), (ConstantGram, "representation"), (ConstantGram, "layer"),
         (ConstantRows, "parameters"), (ConstantRows, "representation")]
HUGE = torch.tensor(3e38)  # the losses stand it, their gradients do not


def single():
    network, image, target = problem()
    return network.float(), image.float(), {task: value.float() for task, value in target.items()}


@pytest.mark.parametrize(("kind", "level"), KINDS)
def test_overflow_under_a_scaler_is_no_fallback(kind, level) -> None:
    """The scaler sees gradients that are not finite and leaves the step out; norms are those of the step before."""
    network, image, target = single()
    balancer = build(kind, level=level)
    step(balancer, network, image, target, scale=torch.tensor(8.0))
    seen = {name: value for name, value in balancer.diagnostics.items() if name != "fallbacks"}
    step(balancer, network, image, target, scale=HUGE)
    assert not all(bool(g.isfinite().all()) for g in gradients(network).values()), "the scaler has to notice"
    assert balancer.fallbacks == 0 == balancer.diagnostics["fallbacks"]
    assert {name: value for name, value in balancer.diagnostics.items() if name != "fallbacks"} == seen and seen
    assert balancer.steps == 2


@pytest.mark.parametrize(("kind", "level"), KINDS)
@pytest.mark.parametrize("scale", [1.0, torch.tensor(8.0)])
def test_a_loss_that_is_not_finite_is_a_fallback_under_a_scaler_too(kind, level, scale) -> None:
    network, image, target = single()
    balancer = build(kind, level=level)
    target["b"] = target["b"] * float("nan")
    step(balancer, network, image, target, scale=scale)
    assert balancer.fallbacks == 1


def test_gradients_that_are_not_finite_are_a_fallback_without_a_scaler() -> None:
    network, image, target = single()
    balancer = build(ConstantGram)
    network.second.register_full_backward_hook(lambda module, given, got: tuple(x * torch.inf for x in given))
    _, weights = step(balancer, network, image, target)
    assert balancer.fallbacks == 1 and set(weights.values()) == {1.0}


@pytest.mark.parametrize("kind", [Constant, ConstantGram, ConstantRows])
def test_the_count_is_saved_and_resumed(kind, monkeypatch) -> None:
    network, image, target = problem()
    balancer = build(kind)
    with monkeypatch.context() as patch:
        patch.setattr("small_network.CONSTANTS", (1.0, float("nan"), 1.0))
        for _ in range(2):
            step(balancer, network, image, target)
    assert balancer.fallbacks == 2
    fresh = build(kind)
    fresh.load_state_dict({name: value.clone() for name, value in balancer.state_dict().items()})
    step(fresh, network, image, target)
    assert fresh.fallbacks == 2 and float(fresh.diagnostics["fallbacks"]) == 2
