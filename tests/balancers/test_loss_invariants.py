"""What holds for every method that sees losses only: order, extremes, one task, missing labels, a saved state."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_toy import TASKS, build
from torch import nn

from polyptych.balancers.dtp import DTP
from polyptych.balancers.dwa import DWA
from polyptych.balancers.famo import FAMO
from polyptych.balancers.gls import GLS
from polyptych.balancers.rlw import RLW
from polyptych.balancers.scale_invariant import ScaleInvariant
from polyptych.balancers.stch import STCH
from polyptych.balancers.uncertainty import Uncertainty
from polyptych.balancers.uw_so import UWSO

METHODS = {"gls": GLS.Config(), "scale_invariant": ScaleInvariant.Config(), "uw_so": UWSO.Config(),
           "dwa": DWA.Config(), "dwa_window": DWA.Config(window=2), "stch": STCH.Config(warmup=1), "dtp": DTP.Config(),
           "dtp_loss": DTP.Config(signal="loss"), "famo": FAMO.Config(), "famo_lazy": FAMO.Config(lazy=True),
           "uncertainty": Uncertainty.Config(), "revised": Uncertainty.Config(revised=True), "rlw": RLW.Config()}
deterministic = pytest.mark.parametrize("name", sorted(METHODS.keys() - {"rlw"}))


def warmed(config, losses, tasks):
    """A balancer with a past, made of the same losses times numbers that depend on the task's name only."""
    balancer, factor = build(config, tasks), dict(zip(TASKS, (0.9, 0.7, 1.1), strict=True))
    for round_ in range(3):
        now = {task: loss * factor[task] ** round_ for task, loss in zip(tasks, losses, strict=True)}
        vector = torch.tensor(list(now.values()), dtype=torch.float64, requires_grad=True)
        balancer.backward(dict(zip(tasks, vector.unbind(), strict=True)), nn.Identity(), None)
        for parameter in balancer.parameters():
            parameter.data -= 0.1 * parameter.grad
        if balancer.wants_after_step:
            balancer.after_step(lambda: {t: torch.tensor(v, dtype=torch.float64) * factor[t] for t, v in now.items()})  # noqa: B023
        balancer.on_epoch_end(now)
        shares = {t: 100 * factor[t] / (2 + round_) for t in tasks}
        balancer.on_validation({t: {"mIoU": shares[t], "delta1": shares[t], "within_11.25": shares[t]} for t in tasks})
    return balancer


def weights_of(balancer, losses):
    vector = torch.tensor(list(losses), dtype=torch.float64, requires_grad=True)
    found = balancer.backward(dict(zip(balancer.tasks, vector.unbind(), strict=True)), nn.Identity(), None)
    assert not balancer.diagnostics.get("fallbacks"), "equal weights instead of the method's own"
    torch.testing.assert_close(vector.grad, torch.stack(list(found.values())).to(vector.grad))
    return [float(w) for w in found.values()]


@deterministic
@settings(max_examples=30, deadline=None)
@given(losses=st.lists(st.floats(1e-6, 1e6), min_size=3, max_size=3), order=st.permutations(range(3)))
def test_order_of_tasks_does_not_matter_and_weights_are_finite(name, losses, order):
    names, values = [TASKS[i] for i in order], [losses[i] for i in order]
    weights = weights_of(warmed(METHODS[name], losses, TASKS), losses)
    shuffled = weights_of(warmed(METHODS[name], values, tuple(names)), values)
    np.testing.assert_allclose([weights[i] for i in order], shuffled, rtol=1e-7)
    assert all(math.isfinite(w) and w >= 0 for w in weights)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_task_whose_loss_is_zero_breaks_nothing(name):
    balancer = warmed(METHODS[name], [0.0, 2.0, 1.0], TASKS)
    assert all(math.isfinite(w) and w >= 0 for w in weights_of(balancer, [0.0, 1.5, 1.0]))


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize(("sum_to", "total"), [("mean", lambda count: 1), ("sum", lambda count: count)])
def test_weights_of_a_sum_that_was_asked_for(name, sum_to, total):
    """In the proportions that the method gives them, also where a task has no label."""
    free, scaled = (warmed(replace(METHODS[name], sum_to=how), [3.0, 2.0, 1.0], TASKS) for how in ("native", sum_to))
    if name in ("uncertainty", "revised", "rlw"):
        scaled.load_state_dict(free.state_dict())  # their own gradients, or chance
    for active in (TASKS, TASKS[1:]):
        losses = {task: torch.tensor(1.5 if task in active else 0.0, requires_grad=True) for task in TASKS}
        native, found = ([float(w) for t, w in balancer.backward(losses, nn.Identity(), None, active=active).items()
                          if t in active] for balancer in (free, scaled))
        assert sum(found) == pytest.approx(total(len(active)), rel=1e-6)
        np.testing.assert_allclose(np.array(found) * sum(native), np.array(native) * sum(found), rtol=1e-5)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_one_task_alone(name):
    (weight,) = weights_of(warmed(METHODS[name], [2.0], TASKS[:1]), [1.5])
    assert math.isfinite(weight) and weight > 0


@deterministic
def test_tasks_with_the_same_losses_weigh_the_same(name):
    tasks = ("depth", "inverse_depth", "normals")  # of one likelihood
    balancer = build(METHODS[name], tasks)
    for loss in (2.0, 1.5, 1.2):
        weights = weights_of(balancer, [loss] * 3)
        assert max(weights) - min(weights) < 1e-12
        balancer.on_epoch_end(dict.fromkeys(tasks, loss))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_saved_state_goes_on_exactly(name):
    first, losses = warmed(METHODS[name], [3.0, 2.0, 1.0], TASKS), [2.5, 1.5, 0.5]
    second = build(METHODS[name])
    second.load_state_dict({key: value.clone() for key, value in first.state_dict().items()})
    for balancer in (first, second):
        balancer.on_epoch_end(dict(zip(TASKS, losses, strict=True)))
    for factor in (1.0, 0.8):
        assert weights_of(first, [factor * x for x in losses]) == weights_of(second, [factor * x for x in losses])


@pytest.mark.parametrize("name", sorted(METHODS))
def test_state_of_a_task_without_labels_does_not_move(name):
    balancer = warmed(METHODS[name], [3.0, 2.0, 1.0], TASKS)
    rows = {key: value for key, value in {**dict(balancer.named_buffers()), **dict(balancer.named_parameters())}.items()
            if value.shape[:1] == (3,) or key.endswith("depth")}
    own = {key: (value if key.endswith("depth") else value[1]).clone() for key, value in rows.items()}
    optimizer = torch.optim.Adam(balancer.parameters(), lr=0.1) if list(balancer.parameters()) else None
    for step, active in enumerate([TASKS, ("semseg", "normals"), ("normals",)]):
        losses = {t: torch.tensor(1.0 + step if t in active else 0.0, requires_grad=True) for t in TASKS}
        weights = balancer.backward(losses, nn.Identity(), None, active=set(active))
        assert all(float(weights[t]) == 0 for t in TASKS if t not in active)
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()
        if balancer.wants_after_step:
            balancer.after_step(lambda: {t: loss.detach() * 0.9 for t, loss in losses.items()})  # noqa: B023
        if step == 0:  # the task had labels in the first step, so that an optimizer has momentum to carry it on
            rows = {key: value for key, value in {**dict(balancer.named_buffers()),
                                                  **dict(balancer.named_parameters())}.items() if key in own}
            own = {key: (value if key.endswith("depth") else value[1]).clone() for key, value in rows.items()}
        balancer.on_epoch_end({t: 1.0 for t in active if t != "depth"})
    now = {**dict(balancer.named_buffers()), **dict(balancer.named_parameters())}
    for key, value in own.items():
        assert torch.equal(now[key] if key.endswith("depth") else now[key][1], value), key


@pytest.mark.parametrize("name", sorted(METHODS))
def test_a_step_in_which_no_task_has_labels_changes_nothing(name):
    balancer = warmed(METHODS[name], [3.0, 2.0, 1.0], TASKS)
    before = {key: value.clone() for key, value in {**dict(balancer.named_buffers()),
                                                    **dict(balancer.named_parameters())}.items()}
    losses = {task: torch.zeros((), requires_grad=True) for task in TASKS}
    weights = balancer.backward(losses, nn.Identity(), None, active=())
    if balancer.wants_after_step:
        balancer.after_step(lambda: {task: loss.detach() for task, loss in losses.items()})
    assert {float(weight) for weight in weights.values()} == {0.0}
    for key, value in {**dict(balancer.named_buffers()), **dict(balancer.named_parameters())}.items():
        assert torch.equal(value, before[key]), key


@deterministic
def test_a_step_whose_loss_is_not_finite_is_forgotten(name):
    """The step itself has equal weights and is counted; two windows of steps later (of two) it has left no trace."""
    balancer = warmed(METHODS[name], [3.0, 2.0, 1.0], TASKS)
    vector = torch.tensor([3.0, math.nan, 1.0], requires_grad=True)
    balancer.backward(dict(zip(TASKS, vector.unbind(), strict=True)), nn.Identity(), None)
    for _ in range(4):
        vector = torch.tensor([3.0, 2.0, 1.0], requires_grad=True)
        weights = balancer.backward(dict(zip(TASKS, vector.unbind(), strict=True)), nn.Identity(), None)
    before = int(balancer.diagnostics["fallbacks"])
    weights = balancer.backward(dict(zip(TASKS, vector.unbind(), strict=True)), nn.Identity(), None)
    assert int(balancer.diagnostics["fallbacks"]) == before
    assert all(math.isfinite(float(w)) for w in weights.values())
