"""Counting without reading anything back to the host."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor


def histogram(index: Int[Tensor, ...], bins: int) -> Int[Tensor, bins]:
    """How often each of ``0 .. bins - 1`` occurs. As ``torch.bincount(index, minlength=bins)``, which on CUDA
    waits for the minimum and the maximum of its input; every index must lie in the range."""
    flat = index.reshape(-1)
    one = torch.ones((), dtype=torch.int64, device=flat.device)
    return torch.zeros(bins, dtype=torch.int64, device=flat.device).scatter_add_(0, flat, one.expand_as(flat))
