"""Whether torch is making a graph to be run elsewhere, by torch.export, for ONNX or by tracing."""

from __future__ import annotations

import torch


def exporting() -> bool:
    """Whether a graph of plain operators is wanted, without custom gradients or operators of other libraries."""
    asked = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.6 has no such function
    return asked() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()
