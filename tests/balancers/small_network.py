"""A small network in float64 whose decoder interacts, three plain balancers with constant weights, and naive gradients
to compare with."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from polyptych.balancers._gradients import GramBalancer, JacobianBalancer
from polyptych.balancers._weighing import LossBalancer
from polyptych.types import Output

TASKS = ("a", "b", "c")
STANDARD = dict.fromkeys(TASKS, 1.0)
CONSTANTS = (0.5, 2.0, 3.0)


def constants(tasks) -> Tensor:
    return torch.tensor([CONSTANTS[TASKS.index(task)] for task in tasks], dtype=torch.float64)


class Constant(LossBalancer):
    def weigh(self, losses, tasks):
        return constants(tasks).to(losses)


class ConstantGram(GramBalancer):
    """Keeps what it was asked."""

    def solve(self, gram, losses, tasks):
        self.asked = gram, losses, tasks
        return constants(tasks)


class ConstantRows(JacobianBalancer):
    def combine(self, rows, losses, tasks):
        self.asked = rows.clone(), losses, tasks
        return constants(tasks).to(rows) @ rows, constants(tasks)

    def combine_maps(self, maps, rows, losses, tasks):
        return [torch.einsum("t,t...->...", constants(tasks).to(x), x) for x in rows], constants(tasks)


class Small(nn.Module):
    """Two maps at the cut, the second made from the first; task b reads what task a predicts; task c has an auxiliary
    weight in the trunk of its own; one layer is unused."""

    def __init__(self, norm: bool = True):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4) if norm else nn.Identity()
        self.second = nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.a = nn.Conv2d(6, 2, 1)
        self.b, self.from_a = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 2, 1)
        self.c = nn.Conv2d(4, 2, 1)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Output:
        fine = self.norm(self.first(x)).tanh()
        coarse = self.second(fine).tanh()
        cut = (fine.view_as(fine), coarse.view_as(coarse))
        a = self.a(cut[1])
        final = {"a": a, "b": self.b(cut[1]) + self.from_a(a.tanh()), "c": self.c(cut[0])[..., ::2, ::2]}
        return Output(final, shared=cut)


def problem(seed: int = 0) -> tuple[Small, Tensor, dict[str, Tensor]]:
    torch.manual_seed(seed)
    network = Small().double()
    image = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    return network, image, {task: torch.randn(4, 2, 4, 4, dtype=torch.float64) for task in TASKS}


def losses_of(network: nn.Module, image: Tensor, target: dict[str, Tensor], part: slice = slice(None),
              whole: int = 4) -> tuple[dict[str, Tensor], Output]:
    """Squared errors of part of the batch, divided by the size of the whole one."""
    output = network(image[part])
    return {task: (output.final[task] - target[task][part]).pow(2).sum() / whole for task in output.final}, output


def rows_of(network: nn.Module, losses: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """By task and parameter, each gradient by itself."""
    named = dict(network.named_parameters())
    found = {}
    for task, loss in losses.items():
        gradients = torch.autograd.grad(loss, list(named.values()), retain_graph=True, allow_unused=True)
        found[task] = {name: g for name, g in zip(named, gradients, strict=True) if g is not None}
    return found


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def build(kind, **options):
    return kind.Config(**options).build(standard_weights=STANDARD)


def step(balancer, network, image, target, parts=1, **more):
    network.zero_grad()
    size = len(image) // parts
    passes = [partial(losses_of, network, image, target, slice(i * size, (i + 1) * size)) for i in range(parts)]
    return balancer.accumulate(passes, network, **more)
