"""Operators that layers are made of, when torch has none that is fast enough."""

from __future__ import annotations

import contextlib

import torch


def exporting() -> bool:
    """Whether a graph of plain operators is wanted, without custom gradients or operators of other libraries."""
    asked = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.6 has no such function
    return asked() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Operations keep the precision of their inputs; also on devices that know no other (``meta``)."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
