"""A small problem for the methods that compare gradients, and steps of training on it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from polyptych.balancers._base import CATALOG
from polyptych.types import Output

TASKS = ("semseg", "depth", "normals", "edges")
NAMES = ("mgda", "pcgrad", "gradvac", "imtl", "cagrad", "nash_mtl", "fairgrad", "aligned_mtl", "upgrad", "dualproj",
         "config", "graddrop", "db_mtl", "moco", "excess_mtl", "sdmgrad", "modo", "cr_mogm")
CHANCE = {"pcgrad", "gradvac", "graddrop"}  # their random numbers belong to tasks by position
MEMORY = {"db_mtl", "moco", "excess_mtl"}


def build(name, tasks=TASKS, **options):
    options = {"level": "parameters", "clip_shared": 0.0, **options}
    return CATALOG.load(name).Config(**options).build(standard_weights=dict.fromkeys(tasks, 1.0))


class Toy:
    """A shared layer and one head per task, with losses of different size, some of which conflict."""

    scales = (0.05, 1.0, 10.0, 0.3)

    def __init__(self, tasks=TASKS, seed=0, same=False):
        random = torch.Generator().manual_seed(seed)
        self.tasks, self.same = tasks, same
        self.x = torch.randn(20, 8, 4, generator=random, dtype=torch.float64)
        self.y = torch.randn(20, len(TASKS), 8, generator=random, dtype=torch.float64)
        self.trunk, self.heads = nn.Linear(4, 5).double(), nn.ModuleDict({t: nn.Linear(5, 1).double() for t in TASKS})
        self.network = nn.ModuleDict({"trunk": self.trunk, "heads": self.heads})
        for parameter in self.network.parameters():
            parameter.data = torch.randn(parameter.shape, generator=random, dtype=torch.float64) / 2
        if same:
            for head in self.heads.values():
                head.load_state_dict(self.heads[TASKS[0]].state_dict())

    def losses(self, step, half=None):
        """In the order of ``tasks``, and the output with its cut. ``half`` is the part of the batch that counts."""
        rows = slice(None) if half is None else half
        features = self.trunk(self.x[step][rows]).tanh()[:, :, None, None]
        cut = features.view_as(features)
        losses = {}
        for task in self.tasks:
            k = 0 if self.same else TASKS.index(task)
            error = self.heads[task](cut[:, :, 0, 0])[:, 0] - self.y[step, k][rows]
            losses[task] = self.scales[k] * error.square().sum() / 8
        return losses, Output({}, shared=(cut,))

    def rows(self, losses):
        """The gradients of the shared parameters, one task at a time."""
        return np.stack([torch.cat([g.flatten() for g in torch.autograd.grad(
            loss, list(self.trunk.parameters()), retain_graph=True)]).numpy() for loss in losses.values()])

    def shared(self):
        return torch.cat([p.grad.flatten() for p in self.trunk.parameters()]).numpy().copy()

    def descend(self):
        with torch.no_grad():
            for parameter in self.network.parameters():
                if parameter.grad is not None:
                    parameter -= 0.02 * parameter.grad.clamp(-1, 1)
        self.network.zero_grad()


def steps(balancer, count=3, toy=None, reference=None):
    """Train; by step the gradients of the tasks, the losses, the step for shared parameters, and what the reference
    says beforehand."""
    toy, history = toy or Toy(balancer.tasks), []
    for step in range(count):
        losses, output = toy.losses(step)
        rows, values = toy.rows(losses), np.array([loss.item() for loss in losses.values()])
        expected = reference(rows, values) if reference else None
        balancer.backward(losses, toy.network, output)
        history.append((rows, values, toy.shared(), expected))
        toy.descend()
    return history


def pair(toy, step):
    losses, output = toy.losses(step)
    return losses, toy.network, output
