"""Low-rank updates of linear layers: one that all tasks share, and one per task.

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
    """A frozen linear layer with updates. A is (rank, in), initialized like torch's linear layers; B is (out, rank),
    initialized to zero, so that every output is initially that of the frozen layer alone.

        y   = W x + b + scale B A drop(x)                    for all tasks
        y_t = W x + b + task_scale B_t A_t z_t               for task t

    z_t is x_t, the task's own features, if there are any, and drop(x) if the tasks branch at this layer. The frozen
    product always reads the common x: the task's own features pass only through its low-rank update (and through
    shortcuts around the layer), which is what makes a task cheap.

    Args:
        ranks: rank of the update, by task.
        both: the output of a task also includes the common update (MTLoRA's mode ``matrixv2``).

    Attributes:
        forks: :meth:`forward` also returns the outputs of all tasks, concatenated to the common one in the last
            dimension.
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
        """The weight including the common update, for code that reads it instead of calling the layer (EVA's fused
        queries, keys and values); dropout then has no effect."""
        if not self.rank:
            return self.linear.weight
        return self.linear.weight + self.scale * (self.lora_shared_B @ self.lora_shared_A)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(self.streams(x), -1) if self.forks else self._common(self.linear(x), self.drop(x))

    def streams(self, x: Tensor, own: Sequence[Tensor] | None = None) -> list[Tensor]:
        """The common output and that of each task.

        Args:
            own: each task's features; by default the tasks branch at this layer.
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
        """One linear layer with the same output in evaluation mode."""
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
    """Freeze the trained weights of a backbone, except parameters whose name matches ``but``. BatchNorm keeps its
    running statistics; stochastic depth stays active."""
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
    """The linear layers that peft would adapt, with the modules that hold them: layers whose full timm name matches the
    pattern, or is one of the targets or ends with a dot and a target."""
    for parent in list(stages.modules()):
        for own, child in list(parent.named_children()):
            if not isinstance(child, nn.Linear):
                continue
            name = getattr(child, "name_in_timm", own)
            if re.fullmatch(pattern, name) if pattern else any(name == t or name.endswith(f".{t}") for t in targets):
                yield parent, own, child


def check_low_rank(rank: int, dropout: float, where: str = "encoder.rank") -> None:
    """Check the options of low-rank updates.

    Raises:
        InputError: not a rank, or not a probability.
    """
    if rank < 1:
        raise InputError(where, str(rank), "1 or more", "raise it")
    if not 0 <= dropout < 1:
        raise InputError("encoder.dropout", str(dropout), "a probability in [0, 1)", "change --encoder.dropout")


def merge(network: nn.Module) -> int:
    """Merge the common updates of a network into the weights, if no task needs the weights without them; returns the
    number of merged layers. In evaluation mode, predictions stay the same up to rounding."""
    number = 0
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LowRankLinear) and not child.tasks:
                setattr(parent, name, child.merged())
                number += 1
    return number
