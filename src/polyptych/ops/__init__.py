"""Operators for layers, where torch has none that is fast enough."""

from __future__ import annotations

import contextlib

import torch


def exporting() -> bool:
    """Whether a graph of standard operators is being exported, without custom gradients or operators of other
    libraries."""
    asked = getattr(torch.compiler, "is_exporting", lambda: False)  # torch 2.6 has no such function
    return asked() or torch.onnx.is_in_onnx_export() or torch.jit.is_tracing()


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Context in which operations keep the precision of their inputs; also works on devices without autocast
    (``meta``)."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)
