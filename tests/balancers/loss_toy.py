"""A small problem of three tasks, trained by a balancer and, the same, by a rule that is written out by hand."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

TASKS = ("semseg", "depth", "normals")
ALL, NO_DEPTH = {0, 1, 2}, {0, 2}
SOME = [ALL, ALL, NO_DEPTH, ALL, {1}, ALL, NO_DEPTH, ALL, ALL, {0, 1}, ALL, ALL]  # tasks with labels, step by step


def build(config, tasks=TASKS):
    return config.build(standard_weights=dict.fromkeys(tasks, 1.0))


class Toy:
    """A shared linear map and one head per task; losses are mean squared errors of very different size."""

    scales = (0.05, 1.0, 30.0)

    def __init__(self, count=3):
        generator = torch.Generator().manual_seed(5)
        self.x, self.y = torch.randn(20, 8, 4, generator=generator).double(), \
            torch.randn(20, count, 8, generator=generator).double()
        self.network = nn.ModuleDict({"trunk": nn.Linear(4, 5), **{f"head{t}": nn.Linear(5, 1) for t in range(count)}})
        self.network.double()
        for parameter in self.network.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator).double() / 2

    def losses(self, step, active=ALL):
        features = self.network["trunk"](self.x[step]).tanh()
        return [scale * (self.network[f"head{t}"](features)[:, 0] - self.y[step, t]).square().mean() * (t in active)
                for t, scale in enumerate(self.scales[:len(self.y[0])])]


def train(balancer, steps, rate=0.02):
    """Twelve or so steps of plain gradient descent; weights by step, and where the parameters end."""
    toy, history = Toy(), []
    own = torch.optim.SGD(balancer.parameters(), lr=0.1) if list(balancer.parameters()) else None
    for step, active in enumerate(steps):
        toy.network.zero_grad()
        losses = dict(zip(TASKS, toy.losses(step, active), strict=True))
        names = {TASKS[t] for t in active}
        history.append([float(w) for w in balancer.backward(losses, toy.network, None, active=names).values()])
        if own is not None:
            own.step()
            own.zero_grad()
        descend(toy.network, rate)
        if balancer.wants_after_step:
            with torch.no_grad():
                balancer.after_step(lambda: dict(zip(TASKS, toy.losses(step, active), strict=True)))  # noqa: B023
    return history, torch.cat([p.detach().flatten() for p in toy.network.parameters()])


def descend(network, rate):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= rate * parameter.grad


def transcribe(rule, steps, rate=0.02):
    """The same by hand: ``rule(losses, active)`` gives weights (a list, zero where inactive), and the gradient is a
    loop over tasks and parameters. ``rule.after(losses, active)`` sees the losses after the step, if it exists."""
    toy, history = Toy(), []
    parameters = list(toy.network.parameters())
    for step, active in enumerate(steps):
        losses = toy.losses(step, active)
        weights = rule([loss.item() for loss in losses], active)
        history.append(weights)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        for t in active:
            rows = torch.autograd.grad(losses[t], parameters, retain_graph=True, allow_unused=True)
            for parameter, row in zip(parameters, rows, strict=True):
                if row is not None:
                    parameter.grad += weights[t] * row
        descend(toy.network, rate)
        if hasattr(rule, "after"):
            with torch.no_grad():
                rule.after([loss.item() for loss in toy.losses(step, active)], active)
    return history, torch.cat([p.detach().flatten() for p in parameters])


def check(config, rule, steps=SOME):
    (weights, parameters), (expected, where) = train(build(config), steps), transcribe(rule, steps)
    np.testing.assert_allclose(weights, expected, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(parameters, where, rtol=1e-8, atol=1e-10)
    assert not np.allclose(weights[0], weights[-1]), "a test in which weights do not move shows little"


def spread(values, active):
    """Values of the active tasks, zero for the others."""
    found = iter(values)
    return [next(found) if t in active else 0.0 for t in range(3)]


def softmax(values):
    powers = [math.exp(v - max(values)) for v in values]
    return [p / sum(powers) for p in powers]
