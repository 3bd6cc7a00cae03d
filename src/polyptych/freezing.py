"""Freezing: modules that keep their weights while the rest of a network is trained.

A module's attribute ``frozen`` says what of it is frozen: ``weights``, or ``all``, which also keeps it in evaluation
mode (batch statistics, dropout, stochastic depth). The module itself has the attribute, instead of a list of names
elsewhere, because encoders take backbones apart and copy parts of them.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def mark(module: nn.Module, frozen: str, until: int = 0) -> None:
    """Freeze one module, but not its submodules; ``until`` is the step at which it thaws (0: never)."""
    marked: Any = module
    marked.frozen, marked.frozen_until = frozen, until
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad_(False)
    if frozen == "all":
        module.training = False


def hold_still(network: nn.Module) -> None:
    """Put frozen modules back into evaluation mode, after the whole network was put into training mode."""
    for module in network.modules():
        if getattr(module, "frozen", "") == "all":
            module.training = False


def with_synchronized_norms(network: Any) -> Any:
    """The network with batch statistics over all processes. torch replaces modules; the new ones stay frozen like the
    old."""
    marks = {name: (module.frozen, module.frozen_until) for name, module in network.named_modules()
             if getattr(module, "frozen", "")}
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for name, how in marks.items():
        mark(network.get_submodule(name), *how)
    return network


def later_trained(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that are frozen until some step."""
    return [parameter for module in network.modules() if getattr(module, "frozen_until", 0)
            for parameter in module.parameters(recurse=False)]


def thaw_step(network: nn.Module) -> int:
    """The step at which frozen parameters begin to learn; 0 if none ever do."""
    return max((getattr(module, "frozen_until", 0) for module in network.modules()), default=0)


def thaw(network: nn.Module) -> None:
    """Unfreeze everything that was frozen until some step."""
    for parameter in later_trained(network):
        parameter.requires_grad_(True)
    for module in network.modules():
        if getattr(module, "frozen_until", 0):
            del module.frozen, module.frozen_until
    network.train(network.training)
