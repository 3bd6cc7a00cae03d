"""Which modules stay whole when a network is captured, and why.

A leaf is one node of the graph. It keeps its own Python code, so it is correct in training and evaluation and for any
image size; a policy cannot treat the layers inside it separately.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from timm.models import get_notrace_functions, get_notrace_modules
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm, getattr(nn, "RMSNorm", nn.LayerNorm))
OPERATIONS = (_ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag)
SIMPLE = (*NORMS, *OPERATIONS, _DropoutNd)

__all__ = ["NORMS", "OPERATIONS", "get_notrace_functions", "has_random_drops", "is_leaf", "is_norm", "reads_training"]


def is_leaf(module: nn.Module) -> str | None:
    """Why the module is a leaf; ``""`` for a layer with nothing inside, None for a module to open."""
    if isinstance(module, SIMPLE):
        return ""
    if isinstance(module, torch.jit.ScriptModule):
        return "it is compiled (TorchScript)"
    kind = type(module)
    if kind.__module__.startswith(("torch.nn.", "torch.ao.nn.")):
        if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            return None
        return "a module of torch with layers inside" if any(True for _ in module.children()) else ""
    marked = kind in get_notrace_modules()  # by timm, because plain torch.fx cannot follow its code; we often can
    if (marked or reads_training(kind)) and not any(True for child in module.children() for _ in child.parameters()):
        return ""  # for instance custom stochastic depth, norms, and "same" padding
    return None


def is_norm(module: nn.Module) -> bool:
    """Whether the module normalizes: torch's norms and their subclasses, and modules with "norm" in their name."""
    if isinstance(module, NORMS):
        return True
    words = type(module).__name__.lower()
    has_inside = any(True for child in module.children() for _ in child.parameters())
    return not has_inside and "norm" in words and not isinstance(module, OPERATIONS)


def reads_training(kind: type[nn.Module]) -> bool:
    """Whether ``forward`` itself reads ``self.training``."""
    return _mentions(getattr(inspect.unwrap(kind.forward), "__code__", None))


def _mentions(code: Any) -> bool:
    if code is None:
        return False
    inner = [constant for constant in code.co_consts if hasattr(constant, "co_names")]
    return "training" in code.co_names or any(map(_mentions, inner))


def has_random_drops(module: nn.Module) -> bool:
    """Whether a ``forward`` that reads ``self.training`` may drop at random: its own rate or that of a direct child is
    positive. Captured in evaluation mode, it would never drop."""
    rates = [value for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]
    rates += [child.p for child in module.children() if isinstance(child, _DropoutNd)]
    return any(rate > 0 for rate in rates)
