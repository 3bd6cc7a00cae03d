"""The same methods in torchjd, where both define the same one: gradients of the total agree to 1e-6."""

from __future__ import annotations

import pytest
import torch
from loss_toy import TASKS, build
from torch import nn

from polyptych.balancers.dwa import DWA
from polyptych.balancers.famo import FAMO
from polyptych.balancers.gls import GLS
from polyptych.balancers.uncertainty import Uncertainty

scalarization = pytest.importorskip("torchjd.scalarization")
STEPS = [[2.0, 0.3, 50.0], [1.8, 0.31, 44.0], [1.5, 0.29, 47.0], [1.1, 0.33, 30.0], [1.2, 0.3, 29.0], [1.0, 0.2, 27.0]]


def ours(balancer, losses):
    vector = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
    balancer.backward(dict(zip(TASKS, vector.unbind(), strict=True)), nn.Identity(), None)
    return vector.grad


def theirs(scalarizer, losses):
    vector = torch.tensor(losses, dtype=torch.float64, requires_grad=True)
    scalarizer(vector).backward()
    return vector.grad


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("losses", STEPS)
def test_gls(losses):
    same(ours(build(GLS.Config()), losses), theirs(scalarization.GeometricMean(), losses))


def test_uncertainty():
    a, b = build(Uncertainty.Config(likelihoods=dict.fromkeys(TASKS, "gaussian"))), scalarization.UW(3).double()
    optimizers = [torch.optim.Adam(module.parameters(), lr=0.05) for module in (a, b)]
    for losses in STEPS:
        same(ours(a, losses), theirs(b, losses))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


def test_dwa():
    a, b = build(DWA.Config()), scalarization.DWA()
    for epoch in range(3):
        rows = STEPS[2 * epoch:2 * epoch + 2]
        for losses in rows:
            same(ours(a, losses), theirs(b, losses))
        a.on_epoch_end(dict(zip(TASKS, torch.tensor(rows, dtype=torch.float64).mean(0).tolist(), strict=True)))
        b.step()


def test_famo():
    a, b = build(FAMO.Config(decay=0.01)), scalarization.FAMO(3, weight_decay=0.01).double()
    for losses in STEPS:
        same(ours(a, losses), theirs(b, losses))
        after = torch.tensor([0.9, 0.95, 1.02], dtype=torch.float64) * torch.tensor(losses, dtype=torch.float64)
        a.after_step(lambda: dict(zip(TASKS, after.unbind(), strict=True)))  # noqa: B023
        b.update(after)
