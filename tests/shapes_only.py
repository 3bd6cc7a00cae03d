"""Networks of which only the shapes are looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

OF_INITIALIZATION = ("uniform_", "normal_", "erfinv_", "clamp_", "mul_", "add_", "fill_", "zero_")


@contextmanager
def shapes_only() -> Iterator[None]:
    """The meta device without what fills tensors, which there is Python code that takes longer than all else."""
    def same(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        return tensor

    with ExitStack() as stack:
        for name in OF_INITIALIZATION:
            stack.enter_context(patch.object(Tensor, name, same))
        stack.enter_context(torch.device("meta"))
        yield
