"""Weights that are kept for several steps, and who is active in them."""

from __future__ import annotations

import pytest
import torch
from gradient_toy import TASKS, Toy, build


def run(balancer, toy, step, active):
    losses, output = toy.losses(step)
    losses = {task: loss if task in active else 0 * loss for task, loss in losses.items()}
    found = balancer.backward(losses, toy.network, output, active=set(active))
    toy.network.zero_grad()
    return {task: float(found[task]) for task in active}


@pytest.mark.parametrize("level", ["parameters", "representation", "layer"])
def test_a_task_that_had_no_label_when_weights_were_computed_has_them_computed(level) -> None:
    """It would weigh 1 beside weights of another scale."""
    (stale, exact), toy = (build("nash_mtl", level=level, every=n) for n in (10, 1)), Toy()
    run(stale, toy, 0, TASKS[1:])
    assert run(stale, toy, 1, TASKS) == pytest.approx(run(exact, toy, 1, TASKS), rel=1e-9)
    kept = run(stale, toy, 2, TASKS)
    assert kept == run(stale, toy, 3, TASKS) != run(exact, toy, 3, TASKS)
    # Of a method without a promised sum, those that stay keep what they have.
    assert run(stale, toy, 4, TASKS[:2]) == {task: kept[task] for task in TASKS[:2]}


@pytest.mark.parametrize(("name", "options", "total"), [
    ("mgda", {}, lambda count: 1), ("nash_mtl", {"sum_to": "sum"}, lambda count: count),
    ("imtl", {"scale_losses": False}, lambda count: 1), ("nash_mtl", {"sum_to": "mean"}, lambda count: 1)])
def test_kept_weights_of_some_tasks_have_the_promised_sum(name, options, total) -> None:
    balancer, toy = build(name, every=10, **options), Toy()
    whole = run(balancer, toy, 0, TASKS)
    for active in (TASKS[:2], TASKS[1:], TASKS):
        found = run(balancer, toy, 1, active)
        assert sum(found.values()) == pytest.approx(total(len(active)))
        if balancer.steps < 3:  # and they are in proportion as before
            assert found[active[0]] * whole[active[1]] == pytest.approx(found[active[1]] * whole[active[0]])


def test_kept_weights_without_a_sum_are_computed() -> None:
    """Where all of MGDA's weight was on a task that has no label now."""
    balancer, toy = build("mgda", every=10), Toy()
    run(balancer, toy, 0, TASKS)
    balancer.kept_weights.copy_(torch.tensor([1.0, 0, 0, 0]))
    assert sum(run(balancer, toy, 1, TASKS[1:]).values()) == pytest.approx(1)


def test_a_first_computation_that_failed_is_made_up_for() -> None:
    balancer, toy = build("nash_mtl", every=10), Toy()
    toy.y[0, 1] = float("inf")
    assert set(run(balancer, toy, 0, TASKS).values()) == {1.0} and balancer.fallbacks == 1
    assert len(set(run(balancer, toy, 1, TASKS).values())) == len(TASKS)
