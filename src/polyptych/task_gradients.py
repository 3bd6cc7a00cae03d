"""How the tasks of a network affect each other: their gradients by stage, and what a step for one task does to the
losses of the others."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyptych import devices, distributed
from polyptych.backbones._base import Backbone
from polyptych.balancers._base import scalars
from polyptych.balancers._engine import Reach, gram, reach, undisturbed
from polyptych.errors import InputError

WHOLE = "all"  # the name for all stages together
STEP = 0.01  # share by which the steps of all tasks together lower the total loss, to first order
MOST_STAGES = 8  # of a network that does not define its stages


@dataclass(frozen=True)
class Look:
    """Measurements of the tasks of a network on one batch. A number that is undefined (a task without labels, a
    gradient of zero) is None.

    Attributes:
        step: optimizer steps done.
        losses: mean losses by task.
        weights: factors by which training multiplied the losses.
        norms: by stage and task, the norm of the gradient of the unweighted loss with respect to the parameters of the
            stage that several tasks share. The stage ``all`` is all stages together.
        cosines: by stage and pair (``semseg/depth``), the cosine of the angle between these gradients, over the
            parameters that both tasks use.
        affinity: ``affinity[i][j]`` is the share by which the loss of task j drops after a step for task i alone
            (negative: by which it grows).
        seconds: duration of the measurement.
    """

    step: int
    losses: dict[str, float | None]
    weights: dict[str, float]
    norms: dict[str, dict[str, float | None]]
    cosines: dict[str, dict[str, float | None]]
    affinity: dict[str, dict[str, float | None]]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def cost(tasks: int) -> int:
    """Upper bound of the duration of a look, in training steps: one forward pass, a backward pass for every task, and
    one more forward pass after the step of each."""
    return tasks + 1


def look(losses: Callable[[], Mapping[str, Tensor]], network: nn.Module, *, step: int = 0,
         weights: Mapping[str, float] | None = None, known: Reach | None = None, scale: float = 1.0) -> Look:
    """Measure how the tasks affect each other on one batch. The network, its ``.grad`` and all random states are left
    unchanged.

    The affinity is that of Fifty et al.: ``1 - L_j(theta - eta w_i grad L_i) / L_j(theta)``, where only parameters that
    several tasks share are updated, by a plain gradient step. Their eta is the learning rate. Under Adam that does not
    determine the length of a step, so here eta is chosen to lower the total loss by 1% to first order if the gradients
    of the tasks are orthogonal: ``eta = 0.01 sum_i |w_i L_i| / sum_i |w_i grad L_i|^2``. This puts affinities of
    different steps and runs on one scale.

    Args:
        losses: runs a forward pass on the batch and returns the losses; called several times. With several processes
            each returns its own; the loss is their mean.
        weights: factors by which training multiplies the losses; 1 by default.
        known: which parameters are shared, if that was measured before.
        scale: multiplies the losses for differentiation, against underflow in float16.

    Raises:
        InputError: losses that are not scalars, or no two tasks that share a parameter.

    Source: Fifty et al., NeurIPS 2021, arXiv 2109.04617
    """
    start = time.perf_counter()
    with undisturbed(network):
        found = losses()
        found = scalars(found, tuple(found), None)
        shared = (known or reach(network, {task: [loss] for task, loss in found.items()}, ())).shared
        if len(found) < 2 or not shared:
            raise InputError("the tasks of the network", f"{len(found)} tasks that share no trainable parameter"
                             if len(found) > 1 else "one task", "tasks that share parameters",
                             "diagnose a network with a shared part, such as --encoder shared")
        rows = _gradients(found, shared, scale)
    tasks = tuple(found)
    host = _means([found[task].detach() for task in tasks])
    weighed = torch.tensor([(weights or {}).get(task, 1.0) for task in tasks], dtype=torch.float64)
    named = _stages(network, shared)
    inner, squares = _products(rows, named.values())
    norms, cosines = squares.diagonal(dim1=1, dim2=2).sqrt(), _cosines(inner, squares)
    size = weighed.square() @ squares[-1].diagonal()
    length = STEP * float((weighed * host).abs().sum() / size) if float(size) > 0 else math.nan
    after = torch.full((len(tasks), len(tasks)), math.nan, dtype=torch.float64)
    if math.isfinite(length):
        for i, row in enumerate(rows):
            if any(x is not None for x in row):
                with _moved(shared, row, length * float(weighed[i])), undisturbed(network), torch.no_grad():
                    again = losses()
                after[i] = _means([again[task].reshape(()) for task in tasks])
    has_labels = norms[-1] > 0
    change = torch.where(has_labels & (host > 0), 1 - after / host, math.nan)
    pairs = [(i, j) for i, j in itertools.combinations(range(len(tasks)), 2)]
    stages = (*named, WHOLE)
    return Look(
        step, {task: _number(loss) if bool(has) else None for task, loss, has in zip(tasks, host, has_labels,
                                                                                    strict=True)},
        dict(zip(tasks, weighed.tolist(), strict=True)),
        {stage: {task: _number(norms[s, i]) for i, task in enumerate(tasks)} for s, stage in enumerate(stages)},
        {stage: {f"{tasks[i]}/{tasks[j]}": _number(cosines[s, i, j]) for i, j in pairs}
         for s, stage in enumerate(stages)},
        {task: {other: _number(change[i, j]) for j, other in enumerate(tasks)} for i, task in enumerate(tasks)},
        time.perf_counter() - start)


def _means(losses: Sequence[Float[Tensor, ""]]) -> Float[Tensor, " t"]:
    """Means over processes, in float64 on the host."""
    return distributed.mean(devices.widened(torch.stack([*losses]))).cpu().double()


def _number(value: Tensor) -> float | None:
    return float(value) if math.isfinite(value) else None


def _gradients(losses: Mapping[str, Tensor], shared: Sequence[nn.Parameter],
               scale: float) -> list[list[Tensor | None]]:
    """Gradients by task and parameter, averaged over processes; None if no process uses the parameter for the task."""
    made = [task for task, loss in losses.items() if loss.requires_grad]
    rows: list[list[Tensor | None]] = []
    for task, loss in losses.items():
        if task not in made:
            rows.append([None] * len(shared))
            continue
        row = torch.autograd.grad(loss * scale, shared, retain_graph=task != made[-1], allow_unused=True)
        rows.append([x / scale if x is not None and scale != 1 else x for x in row])
    if distributed.world() > 1:  # every process must take part in every exchange
        used = distributed.total(torch.tensor([[float(x is not None) for x in row] for row in rows],
                                              device=shared[0].device)).tolist()
        rows = [[(torch.zeros_like(p) if x is None else x) if here else None
                 for x, p, here in zip(row, shared, users, strict=True)]
                for row, users in zip(rows, used, strict=True)]
        distributed.average_([x for row in rows for x in row if x is not None])
    return rows


def _products(rows: Sequence[Sequence[Tensor | None]], stages: Iterable[Sequence[int]]) -> tuple[
        Float[Tensor, "s t t"], Float[Tensor, "s t t"]]:
    """By stage, and last of all stages together: inner products of the tasks' gradients, and at (i, j) the squared norm
    of task i's gradient over the parameters that task j uses too. (A task may share different parameters with different
    tasks.)"""
    size, found = len(rows), []
    for stage in stages:
        by_users: dict[tuple[int, ...], list[int]] = {}
        for p in stage:
            by_users.setdefault(tuple(i for i in range(size) if rows[i][p] is not None), []).append(p)
        both = torch.zeros(2, size, size, dtype=torch.float64)
        for users, parameters in by_users.items():
            if users:
                vectors = [torch.cat([_present(rows[i][p]).flatten() for p in parameters]) for i in users]
                here = gram(vectors).cpu().double()
                place = torch.tensor(users)
                both[0, place[:, None], place] += here
                both[1, place[:, None], place] += here.diagonal()[:, None]
        found.append(both)
    inner, squares = torch.stack([*found, torch.stack(found).sum(0)]).unbind(1)
    return inner, squares.clamp(min=0)


def _present(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient


def _cosines(inner: Float[Tensor, "s t t"], squares: Float[Tensor, "s t t"]) -> Float[Tensor, "s t t"]:
    return inner / (squares * squares.mT).sqrt()  # NaN (0 / 0) if a gradient is zero


class _moved:
    """Context in which parameters are moved against a gradient; on exit they are restored bit for bit."""

    def __init__(self, parameters: Sequence[nn.Parameter], gradient: Sequence[Tensor | None], length: float):
        self.parameters, self.gradient, self.length = parameters, gradient, length

    @torch.no_grad()
    def __enter__(self) -> None:
        self.before = [p.detach().clone() for p in self.parameters]
        for p, x in zip(self.parameters, self.gradient, strict=True):
            if x is not None:
                p.sub_(x.to(p.dtype), alpha=self.length)

    @torch.no_grad()
    def __exit__(self, *error: object) -> None:
        for p, value in zip(self.parameters, self.before, strict=True):
            p.copy_(value)


def _stages(network: nn.Module, shared: Sequence[nn.Parameter]) -> dict[str, list[int]]:
    """The positions of the shared parameters by stage: the stages of backbones, then the rest of encoder and decoder.
    In other networks, the stages are the children of the smallest module that holds all shared parameters."""
    place = {id(p): k for k, p in enumerate(shared)}
    names = [name for name, p in network.named_parameters() if id(p) in place]
    order = [place[id(p)] for _, p in network.named_parameters() if id(p) in place]
    backbones = {path: module for path, module in network.named_modules() if isinstance(module, Backbone)}
    label = [_in_backbone(name, backbones) for name in names]
    if not any(label):
        paths = [name.split(".")[:-1] for name in names]
        common = sum(1 for _ in itertools.takewhile(lambda part: len({*part}) == 1, zip(*paths, strict=False)))
        label = [(path[common:] or ["rest"])[0] for path in paths]
    stages: dict[str, list[int]] = {}
    for name, stage, k in zip(names, label, order, strict=True):
        stages.setdefault(stage or name.partition(".")[0], []).append(k)
    if len(stages) <= MOST_STAGES:
        return stages
    ends = [round(k * len(stages) / MOST_STAGES) for k in range(MOST_STAGES + 1)]
    parts = [list(stages)[a:b] for a, b in itertools.pairwise(ends)]
    return {part[0] if len(part) == 1 else f"{part[0]}-{part[-1]}": [k for name in part for k in stages[name]]
            for part in parts}


def _in_backbone(name: str, backbones: Mapping[str, Backbone]) -> str:
    """``stem``, ``stage 1``, ... of a parameter; empty outside of backbones."""
    for path, backbone in backbones.items():
        if name.startswith(f"{path}." if path else ""):
            inside = name.removeprefix(f"{path}.").split(".")
            if inside[0] != "stages":
                return "backbone"
            number = int(inside[1]) - int(backbone.has_stem)
            return f"stage {number + 1}" if number >= 0 else "stem"
    return ""
