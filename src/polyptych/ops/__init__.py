"""Operators that layers are made of, when torch has none that is fast enough."""

from __future__ import annotations

import torch


def exporting() -> bool:
    """Whether a graph of plain operators is wanted, without custom gradients or operators of other libraries."""
    asked = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.6 has no such function
    return asked() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()
