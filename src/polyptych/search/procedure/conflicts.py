"""Where tasks' gradients conflict: the cheap baseline that any search for what to share must beat.

Recon (Shi, Ren, Zhang, Pan, ICLR 2023, arXiv 2302.11289): train with everything shared, count for every part how often
the gradients of two tasks conflict, and give every task its own copy of the parts with the most conflicts. Here the
conflicts (cosines below 0) are counted on batches after the warm-up, and units are copied as long as the budget allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import combinations

import torch
from torch import Tensor, nn

from polyptych.balancers._engine import undisturbed
from polyptych.networks import Network
from polyptych.passes import total_loss
from polyptych.search.procedure.super_encoder import encoder_of
from polyptych.search.space.anchors import tensors_of
from polyptych.search.space.policy import OWN, SHARED, Policy
from polyptych.search.space.spaces import Space
from polyptych.tasks._base import Task
from polyptych.types import Batch


def count_conflicts(network: Network, tasks: Mapping[str, Task], batches: Iterable[Batch], device: torch.device
                    ) -> list[float]:
    """For every unit, the share of (batch, pair of tasks) in which the gradients with respect to the unit's shared
    weights have a negative cosine. At equal shares, the unit with the smaller mean cosine has the larger number, by
    less than one batch and pair."""
    encoder = encoder_of(network)
    encoder.policy, encoder.weights = encoder.supermodel.space.all_shared(), None
    units = [[p for target in unit.targets for p in _parameters(encoder.supermodel.backbone, target)]
             for unit in encoder.supermodel.units]
    every = [p for unit in units for p in unit]
    negative = torch.zeros(len(units))
    cosines = torch.zeros(len(units))
    number = 0
    network.train()
    with undisturbed(network):
        for batch in batches:
            gradients = _gradients(network, tasks, batch.to(device), every)
            for one, other in combinations(gradients, 2):
                number += 1
                for index, cosine in enumerate(_by_unit(one, other, units)):
                    negative[index] += cosine < 0
                    cosines[index] += cosine
    number = max(number, 1)
    return [float(n / number - c / number / (4 * number)) for n, c in zip(negative, cosines, strict=True)]


def _parameters(root: nn.Module, target: str) -> list[nn.Parameter]:
    return [p for p in tensors_of(root, target) if isinstance(p, nn.Parameter) and p.requires_grad]


def _gradients(network: Network, tasks: Mapping[str, Task], batch: Batch, parameters: list[nn.Parameter]
               ) -> list[list[Tensor]]:
    """The gradients of every task that has labels in the batch."""
    output = network(batch.image)
    found = []
    for name, task in tasks.items():
        loss = total_loss(task, name, output, batch)
        if int(loss.count):
            rows = torch.autograd.grad(loss.mean(), parameters, retain_graph=True, allow_unused=True)
            found.append([torch.zeros_like(p) if g is None else g for p, g in zip(parameters, rows, strict=True)])
    return found


def _by_unit(one: list[Tensor], other: list[Tensor], units: list[list[nn.Parameter]]) -> list[float]:
    cosines, at = [], 0
    for unit in units:
        a, b = (torch.cat([g.flatten() for g in rows[at:at + len(unit)]] or [torch.zeros(1)]) for rows in (one, other))
        cosines.append(float(torch.nn.functional.cosine_similarity(a, b, dim=0)))
        at += len(unit)
    return cosines


def most_conflicting_own(space: Space, scores: list[float], allowed: Callable[[Policy], bool]) -> Policy:
    """Give each task its own copy of the units, most conflicting first, except those that would exceed the budget. (In
    a tree, everything after such a unit is each task's own, too.)"""
    everyone = len(space.tasks)
    chosen: set[int] = set()

    def policy(own: set[int]) -> Policy:
        return space.nearest([(OWN if i in own else SHARED,) * everyone for i in range(len(space.units))])

    for unit in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if allowed(policy({*chosen, unit})):
            chosen.add(unit)
    return policy(chosen).canonical()
