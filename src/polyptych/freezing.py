"""What stands still while the rest of a network is trained.

A module's attribute ``frozen`` says what stands still of it: ``weights``, or ``all``, which means that it also stays in
evaluation mode (batch statistics, dropout, stochastic depth). It is kept by the module, not in a list of names, because
encoders take backbones apart and copy parts of them.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def mark(module: nn.Module, frozen: str, until: int = 0) -> None:
    """Let one module, without those inside, stand still."""
    marked: Any = module
    marked.frozen, marked.frozen_until = frozen, until
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad_(False)
    if frozen == "all":
        module.training = False


def hold_still(network: nn.Module) -> None:
    """Bring what stands still back into evaluation mode, after the whole was put into training mode."""
    for module in network.modules():
        if getattr(module, "frozen", "") == "all":
            module.training = False


def with_synchronized_norms(network: Any) -> Any:
    """The network with batch statistics over all processes; torch makes new modules, which stand still as the old."""
    marks = {name: (module.frozen, module.frozen_until) for name, module in network.named_modules()
             if getattr(module, "frozen", "")}
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for name, how in marks.items():
        mark(network.get_submodule(name), *how)
    return network


def later_trained(network: nn.Module) -> list[nn.Parameter]:
    """The parameters that stand still until some step."""
    return [parameter for module in network.modules() if getattr(module, "frozen_until", 0)
            for parameter in module.parameters(recurse=False)]


def thaw_step(network: nn.Module) -> int:
    """The number of steps after which what stands still begins to learn; 0 where nothing does."""
    return max((getattr(module, "frozen_until", 0) for module in network.modules()), default=0)


def thaw(network: nn.Module) -> None:
    """Let everything learn that stood still until some step."""
    for parameter in later_trained(network):
        parameter.requires_grad_(True)
    for module in network.modules():
        if getattr(module, "frozen_until", 0):
            del module.frozen, module.frozen_until
    network.train(network.training)
