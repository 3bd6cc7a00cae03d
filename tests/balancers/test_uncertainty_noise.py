"""Uncertainty weighting finds how noisy each task's labels are."""

from __future__ import annotations

import math

import pytest
import torch
from loss_toy import build
from torch import nn

from polyptych.balancers.uncertainty import Uncertainty

NOISE = {"quiet": 0.2, "loud": 3.0, "spiky": 0.7}  # standard deviations of two gaussians, scale of a laplacian


def test_it_recovers_the_noise_of_a_regression():
    torch.manual_seed(0)
    count = 4000
    x, truth = torch.randn(count, 6), torch.randn(6, 3)
    noise = torch.stack([NOISE["quiet"] * torch.randn(count), NOISE["loud"] * torch.randn(count),
                         torch.distributions.Laplace(0.0, NOISE["spiky"]).sample((count,))], 1)
    y = (x @ truth) + noise
    network = nn.ModuleDict({"trunk": nn.Linear(6, 6), **{task: nn.Linear(6, 1) for task in NOISE}})
    likelihoods = {"quiet": "gaussian", "loud": "gaussian", "spiky": "laplace"}
    balancer = build(Uncertainty.Config(likelihoods=likelihoods), tuple(NOISE))
    optimizer = torch.optim.Adam([{"params": network.parameters()}, {"params": balancer.parameters()}], lr=0.02)
    for _ in range(600):
        features = network["trunk"](x)
        error = {task: network[task](features)[:, 0] - y[:, t] for t, task in enumerate(NOISE)}
        losses = {task: e.abs().mean() if task == "spiky" else e.square().mean() for task, e in error.items()}
        weights = balancer.backward(losses, network, None)
        optimizer.step()
        optimizer.zero_grad()
    found = {task: math.exp(s.item() * (1.0 if task == "spiky" else 0.5)) for task, s in balancer.s.items()}
    for task, noise_ in NOISE.items():
        assert found[task] == pytest.approx(noise_, rel=0.05), task
    assert float(weights["quiet"]) == pytest.approx(0.5 / NOISE["quiet"] ** 2, rel=0.1)


def test_s_stays_in_range_and_comes_back():
    """A loss of zero drives s to its bound; labels that come later must be able to bring it back."""
    balancer = build(Uncertainty.Config(), ("depth",))
    optimizer = torch.optim.SGD(balancer.parameters(), lr=1.0)

    def step(loss):
        weights = balancer.backward({"depth": torch.tensor(loss, requires_grad=True)}, nn.Identity(), None)
        optimizer.step()
        optimizer.zero_grad()
        return float(weights["depth"])

    assert step(0.0) == 1.0
    for _ in range(20):
        last = step(0.0)
    assert last == pytest.approx(math.exp(10))
    assert step(1e-4) == pytest.approx(math.exp(10)) and step(1e-4) < math.exp(9.9)
