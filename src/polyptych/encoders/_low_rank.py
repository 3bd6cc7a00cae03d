"""Low-rank updates of linear layers: for all tasks together, and for each of them.

Source: Hu et al., LoRA, ICLR 2022, arXiv 2106.09685; Agiza, Neseem, Reda, MTLoRA, CVPR 2024, arXiv 2403.20320
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyptych.errors import InputError
from polyptych.freezing import mark


class LowRankLinear(nn.Module):
    """A frozen linear layer with updates. A is (rank, in) and begins as torch's linear layers do, B is (out, rank) and
    begins at zero, so that at first every output is that of the layer alone.

        y   = W x + b + scale B A drop(x)                    for all tasks
        y_t = W x + b + task_scale B_t A_t z_t               for task t

    z_t is x_t where features of the task come in, and drop(x) where it parts from the others here. The frozen product
    reads the common x also for a task: its own features go on through its ranks alone (and through shortcuts around
    the layer), which is what makes a task cheap.

    Args:
        ranks: by task, of its update.
        both: a task's output has the common update too (MTLoRA's mode ``matrixv2``).

    Attributes:
        forks: :meth:`forward` gives the outputs for all tasks too, behind the common one in the last dimension.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float, dropout: float = 0.0,
                 ranks: Mapping[str, int] | None = None, task_scale: float = 1.0, both: bool = False):
        super().__init__()
        self.linear, self.rank, self.scale, self.task_scale, self.both = linear, rank, scale, task_scale, both
        self.forks = False
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        if rank:
            self.lora_shared_A, self.lora_shared_B = self._update(rank)
        ranks = ranks or {}
        updates = {task: self._update(ranks[task]) for task in sorted(ranks)}  # the order of published files
        self.lora_tasks_A = nn.ParameterDict({task: a for task, (a, _) in updates.items()})
        self.lora_tasks_B = nn.ParameterDict({task: b for task, (_, b) in updates.items()})
        self.tasks = tuple(ranks)
        mark_adapters(self.named_parameters(), "lora_")

    def _update(self, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
        like = self.linear.weight
        a = nn.Parameter(torch.empty(rank, self.in_features, dtype=like.dtype, device=like.device))
        b = nn.Parameter(torch.zeros(self.out_features, rank, dtype=like.dtype, device=like.device))
        nn.init.kaiming_uniform_(a, a=math.sqrt(5))
        return a, b

    @property
    def in_features(self) -> int:
        return self.linear.in_features

    @property
    def out_features(self) -> int:
        return self.linear.out_features

    @property
    def bias(self) -> Tensor | None:
        return self.linear.bias

    @property
    def weight(self) -> Tensor:
        """The weight with the update for all tasks, for layers that take it instead of calling (EVA's fused queries,
        keys and values); dropout does not act then."""
        if not self.rank:
            return self.linear.weight
        return self.linear.weight + self.scale * (self.lora_shared_B @ self.lora_shared_A)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.streams(x), -1) if self.forks else self._common(self.linear(x), self.drop(x))

    def streams(self, x: Tensor, own: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The outputs for all tasks together and for each of them.

        Args:
            own: each task's features; without them tasks part here.
        """
        frozen, dropped = self.linear(x), self.drop(x)
        common = self._common(frozen, dropped)
        base = common if self.both else frozen
        return [common, *(base + self.task_scale * F.linear(F.linear(z, self.lora_tasks_A[task]),
                                                            self.lora_tasks_B[task])
                          for task, z in zip(self.tasks, own or [dropped] * len(self.tasks), strict=True))]

    def _common(self, frozen: Tensor, dropped: Tensor) -> Tensor:
        if not self.rank:
            return frozen
        return frozen + self.scale * F.linear(F.linear(dropped, self.lora_shared_A), self.lora_shared_B)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One linear layer that gives the same, in evaluation mode."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None,
                           device=self.linear.weight.device, dtype=self.linear.weight.dtype)
        linear.weight.copy_(self.weight)
        if self.bias is not None:
            linear.bias.copy_(self.bias)
        return linear.train(self.training).requires_grad_(False)


def mark_adapters(named: Any, beginning: str = "") -> None:
    """Tell the optimizer which parameters adapt pretrained weights."""
    for name, parameter in named:
        if name.startswith(beginning):
            parameter.adapts = True


def freeze_weights(stages: nn.Module, until: int = 0, but: str = "") -> None:
    """Let the trained weights of a backbone stand still, but for parameters whose name matches. Norms of a batch keep
    their statistics; stochastic depth goes on."""
    free = re.compile(but) if but else None
    for place, module in stages.named_modules():
        if getattr(module, "frozen", ""):
            continue
        place = getattr(module, "name_in_timm", place)
        kept = [p for name, p in module.named_parameters(prefix=place, recurse=False) if free and free.search(name)]
        statistics = isinstance(module, nn.modules.batchnorm._BatchNorm) and not kept
        mark(module, "all" if statistics else "weights", until)
        for parameter in kept:
            parameter.requires_grad_(True)


def linear_layers(stages: nn.Module, targets: Sequence[str],
                  pattern: str) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """The linear layers that peft would adapt, with the modules that hold them: whose whole name in timm matches the
    pattern, or whose name is one of the targets or ends with a dot and one of them."""
    for parent in list(stages.modules()):
        for own, child in list(parent.named_children()):
            if not isinstance(child, nn.Linear):
                continue
            name = getattr(child, "name_in_timm", own)
            if re.fullmatch(pattern, name) if pattern else any(name == t or name.endswith(f".{t}") for t in targets):
                yield parent, own, child


def check_low_rank(rank: int, dropout: float, where: str = "encoder.rank") -> None:
    """
    Raises:
        InputError: not a rank, or not a probability.
    """
    if rank < 1:
        raise InputError(where, str(rank), "1 or more", "raise it")
    if not 0 <= dropout < 1:
        raise InputError("encoder.dropout", str(dropout), "a probability in [0, 1)", "change --encoder.dropout")


def merge(network: nn.Module) -> int:
    """Put the updates of a network that all tasks share into the weights, where no task needs the weight without them;
    returns how many layers were merged. Predictions stay what they are in evaluation mode, up to rounding."""
    number = 0
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LowRankLinear) and not child.tasks:
                setattr(parent, name, child.merged())
                number += 1
    return number
