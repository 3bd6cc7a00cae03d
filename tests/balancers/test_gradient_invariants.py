"""What holds for every method that compares gradients: missing labels, order, identical tasks, resume, bad options."""

from __future__ import annotations

import math

import gradient_references as papers
import numpy as np
import pytest
import torch
from gradient_toy import CHANCE, MEMORY, NAMES, TASKS, Toy, build, pair, steps
from torch import nn

from polyptych.errors import InputError

every = pytest.mark.parametrize("name", NAMES)
LEVELS = [(name, level) for name in NAMES for level in ("parameters", "representation")
          if level == "parameters" or name not in MEMORY | {"sdmgrad", "modo"}]


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_steps_are_finite_and_a_missing_task_changes_nothing(name, level) -> None:
    """A task without a label for some steps: the others go on as if it did not exist, and its state stays."""
    balancer, without = build(name, level=level), build(name, TASKS[1:], level=level)
    one, other = Toy(), Toy(TASKS[1:])
    without.seed = balancer.seed
    losses, output = one.losses(0)
    balancer.follow(one.network, {task: [loss] for task, loss in losses.items()}, output.shared)
    before = {key: value.clone() for key, value in balancer.state_dict().items()}
    for step in range(3):
        losses, output = one.losses(step)
        losses[TASKS[0]] = losses[TASKS[0]] * 0
        weights = balancer.backward(losses, one.network, output, active=set(TASKS[1:]))
        without.backward(*pair(other, step))
        assert np.isfinite(one.shared()).all() and float(weights[TASKS[0]]) == 0
        np.testing.assert_allclose(one.shared(), other.shared(), rtol=1e-9, atol=1e-12)
        one.descend()
        other.descend()
    after = balancer.state_dict()
    for key, value in before.items():
        if value.shape[:1] == (4,):
            assert torch.equal(after[key][0], value[0]), key


@pytest.mark.parametrize("name", sorted(set(NAMES) - CHANCE))
def test_order_of_tasks_does_not_matter(name) -> None:
    order = ("edges", "semseg", "normals", "depth")
    for (_, _, one, _), (_, _, other, _) in zip(steps(build(name)), steps(build(name, order)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-8)


@every
def test_one_task_goes_along_its_gradient(name) -> None:
    for rows, _, found, _ in steps(build(name, TASKS[1:2])):
        assert found @ rows[0] > 0
        if name not in MEMORY:  # these go along an average of past gradients
            np.testing.assert_allclose(found / papers.norm(found), rows[0] / papers.norm(rows[0]), atol=1e-9)


@every
def test_identical_tasks_go_along_their_gradient(name) -> None:
    balancer = build(name)
    for rows, _, found, _ in steps(balancer, toy=Toy(same=True)):
        assert found @ rows[0] > 0
        if name not in MEMORY:
            np.testing.assert_allclose(found / papers.norm(found), rows[0] / papers.norm(rows[0]), atol=1e-6)
    assert balancer.fallbacks == 0


@pytest.mark.parametrize(("name", "level"), LEVELS)
def test_a_task_without_gradient_does_not_stop_the_others(name, level) -> None:
    """Its loss is exactly zero though it has labels: nothing is left to learn."""
    balancer, toy = build(name, level=level), Toy()
    for step in range(3):
        losses, output = toy.losses(step)
        losses[TASKS[0]] = losses[TASKS[0]] * 0
        balancer.backward(losses, toy.network, output)
        assert np.isfinite(toy.shared()).all() and papers.norm(toy.shared()) > 0
        toy.descend()
    assert balancer.fallbacks == 0


@every
def test_gradients_that_cancel_give_a_finite_step(name) -> None:
    balancer, toy = build(name, TASKS[:2]), Toy(TASKS[:2])
    for step in range(3):
        losses, output = toy.losses(step)
        balancer.backward({TASKS[0]: losses[TASKS[0]], TASKS[1]: 5 - losses[TASKS[0]]}, toy.network, output)
        assert np.isfinite(toy.shared()).all()
        assert papers.norm(toy.shared()) < 1e6
        toy.network.zero_grad()


@every
def test_state_survives_a_fresh_instance(name) -> None:
    """Three steps, and two, saved and loaded, and one more: the same bits."""
    whole = steps(build(name), 3)[-1][2]
    first, toy = build(name), Toy()
    steps(first, 2, toy)
    second = build(name)
    second.load_state_dict({key: value.clone() for key, value in first.state_dict().items()})
    losses, output = toy.losses(2)
    second.backward(losses, toy.network, output)
    assert (toy.shared() == whole).all()


@pytest.mark.parametrize("name", sorted(MEMORY))
def test_memory_of_another_network_is_refused(name) -> None:
    balancer = build(name)
    steps(balancer, 1)
    other = build(name)
    other.load_state_dict(balancer.state_dict())
    toy = Toy()
    toy.network["trunk"] = toy.trunk = nn.Linear(4, 5, bias=False).double()
    with pytest.raises(InputError, match="state of the balancer"):
        other.backward(*pair(toy, 0))


@pytest.mark.parametrize("name", sorted(MEMORY))
def test_levels_without_memory_are_refused(name) -> None:
    with pytest.raises(InputError, match="level"):
        balancer = build(name, level="representation")
        balancer.backward(*pair(Toy(), 0))


@pytest.mark.parametrize(("name", "options"), [
    ("gradvac", {"beta": 1.5}), ("imtl", {"learning_rate": 0.0}), ("cagrad", {"c": 1.0}), ("cagrad", {"c": math.nan}),
    ("fairgrad", {"alpha": 0.0}), ("aligned_mtl", {"floor": -1.0}), ("upgrad", {"ridge": 0.0}),
    ("dualproj", {"ridge": 0.0}), ("graddrop", {"leak": {"depth": 2.0}}), ("graddrop", {"leak": {"dpeth": 0.1}}),
    ("db_mtl", {"beta": 1.0}), ("moco", {"beta": 0.0}), ("moco", {"rho": -1.0}), ("excess_mtl", {"warmup": 0}),
    ("sdmgrad", {"momentum": 1.0}), ("modo", {"gamma": 0.0}), ("modo", {"rho": -1.0}),
    ("imtl", {"balance_gradients": False, "scale_losses": False}), ("cr_mogm", {"share": 1.0}),
    ("cr_mogm", {"method": "moco"}), ("cr_mogm", {"method": "dwa"}), ("cr_mogm", {"options": {"c": 0.5}})])
def test_options_out_of_range_are_refused_by_name(name, options) -> None:
    with pytest.raises(InputError, match=f"balancer.{next(iter(options))}"):
        build(name, **options)


def test_a_direction_has_no_weights_to_scale() -> None:
    with pytest.raises(InputError, match=r"balancer\.sum-to"):
        build("moco", sum_to="mean")


@pytest.mark.parametrize("name", ["mgda", "imtl", "nash_mtl", "aligned_mtl", "config", "upgrad", "dualproj"])
def test_a_step_improves_every_task(name) -> None:
    """Methods that avoid conflict do so, where a direction without conflict exists."""
    for seed in range(5):
        options = {"imtl": {"scale_losses": False}, "mgda": {"normalization": "none"}}.get(name, {})
        for rows, _, found, _ in steps(build(name, **options), 1, Toy(TASKS, seed)):
            assert (rows @ found).min() > -1e-3 * np.abs(rows @ found).max()


def test_cagrad_does_better_than_the_mean_for_the_worst_task() -> None:
    for seed in range(5):
        for rows, _, found, _ in steps(build("cagrad"), 1, Toy(TASKS, seed)):
            assert (rows @ found).min() * (1 + 0.4**2) > (rows @ rows.sum(0)).min()


@pytest.mark.parametrize("name", ["moco", "sdmgrad", "excess_mtl", "modo"])
def test_a_task_of_weight_zero_can_be_alone(name) -> None:
    """Weights that are carried along may be zero; where only such tasks have labels they share the step."""
    balancer, toy = build(name), Toy()
    balancer.weights.copy_(torch.tensor([1.0, 0, 0, 0]))
    losses, output = toy.losses(0)
    weights = balancer.backward(losses, toy.network, output, active=set(TASKS[1:]))
    assert sum(float(w) for w in weights.values()) > 0 and papers.norm(toy.shared()) > 0
    assert balancer.fallbacks == 0 and balancer.weights[0] == 1
