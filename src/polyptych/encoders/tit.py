"""TIT, the Task Indicating Transformer: adapters in every block of one backbone, which runs once per task.

Source: Lu, Sirejiding, Ding, Wang, Lu, ICASSP 2024, arXiv 2403.00327
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from polyptych.backbones._base import Backbone
from polyptych.backbones._prompted_attention import Now
from polyptych.encoders._low_rank import mark_adapters
from polyptych.encoders._task_conditional import TaskConditional, width_of
from polyptych.errors import InputError


class TIT(TaskConditional):
    """y + adapter(y) replaces the output y of each attention and each MLP. An adapter is a narrow bottleneck. Either a
    single matrix in it is task-specific (``mix``), or the task has the whole adapter to itself (``own``). The result
    does not begin as the identity.

    The paper's decoder is ``--decoder tit``, with windows as in ``--backbone.swin-windows published``.

    Raises:
        InputError: a backbone without blocks, or one that is too narrow.
    """

    example = "test_vit"

    @dataclass(frozen=True, kw_only=True)
    class Config(TaskConditional.Config):
        adapter: Literal["mix", "own"] = "mix"
        """Adapter: the paper's Mix Task Adapter, or a separate one per task."""
        down: int = 4
        """Divides the width of a block: gives the width of the task-specific matrix (mix), or of a separate adapter."""
        reduction: int = 2
        """Divides that width once more: gives the rank of the shared matrices (mix)."""

    def __init__(self, config: Config, *, backbone: Backbone.Config, tasks: tuple[str, ...]):
        super().__init__(backbone, tasks)
        for name in ("down", "reduction"):
            if getattr(config, name) < 1:
                raise InputError(f"encoder.{name}", str(getattr(config, name)), "1 or more",
                                 f"change --encoder.{name}")

        for block in (block for blocks in self.blocks("tit") for block in blocks):
            for name in ("attn", "mlp"):
                setattr(block, name, Adapted(getattr(block, name), self._make(config, width_of(block)), self.now))

    def _make(self, config: Config, width: int) -> nn.Module:
        middle = width // config.down
        inner = middle // config.reduction if config.adapter == "mix" else middle
        if inner < 1:
            raise InputError("encoder.down", f"{config.down}, of a width of {width}", "an inner width of 1 or more",
                             "lower --encoder.down or --encoder.reduction")
        return MixTaskAdapter(self.tasks, width, middle, inner) if config.adapter == "mix" else \
            OwnAdapter(self.tasks, width, middle)


class Adapted(nn.Module):
    """A module with an adapter on its output."""

    def __init__(self, inner: nn.Module, adapter: nn.Module, now: Now):
        super().__init__()
        self.inner, self.adapter, self.now = inner, adapter, now
        for layer in adapter.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        mark_adapters(adapter.named_parameters())

    def forward(self, *args: Any, **options: Any) -> Tensor:
        y = self.inner(*args, **options)
        return y + self.adapter(y, self.now.task)


class MixTaskAdapter(nn.Module):
    """n to k (shared), k to m (per task: the Task Indicating Matrix), GELU, m to k and k to n (shared)."""

    def __init__(self, tasks: tuple[str, ...], n: int, m: int, k: int):
        super().__init__()
        self.down_shared = nn.Linear(n, k)
        self.down_task = nn.ModuleDict({task: nn.Linear(k, m) for task in tasks})
        self.up_1, self.up_2 = nn.Linear(m, k), nn.Linear(k, n)

    def forward(self, y: Tensor, task: str) -> Tensor:
        return self.up_2(self.up_1(F.gelu(self.down_task[task](self.down_shared(y)))))


class OwnAdapter(nn.Module):
    """n to m, GELU, m to n, separately for each task."""

    def __init__(self, tasks: tuple[str, ...], n: int, m: int):
        super().__init__()
        self.down = nn.ModuleDict({task: nn.Linear(n, m) for task in tasks})
        self.up = nn.ModuleDict({task: nn.Linear(m, n) for task in tasks})

    def forward(self, y: Tensor, task: str) -> Tensor:
        return self.up[task](F.gelu(self.down[task](y)))
