"""Peak memory of activations: from the allocator on CUDA, by tracking every storage on the CPU.

Both count what is allocated *beyond* the network, its gradients, its input and the optimizer. On the CPU, a storage
counts from the operator that makes it until it is freed, so the number is exact and machine-independent, but workspaces
inside kernels are invisible; the number of CUDA includes them and rounds every block up.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from polyptych import devices
from polyptych.types import Output


@dataclass(frozen=True)
class Memory:
    """Memory in bytes.

    Attributes:
        batch_size: batch size of the two peaks.
        inference: peak of the activations of a forward pass that records no gradients.
        training: peak of the activations of a forward and backward pass; None if not measured.
        parameters, buffers: parameters and buffers of the network.
        gradients: gradients of the trainable parameters.
        optimizer: the two moments of Adam.
    """

    batch_size: int
    inference: int
    training: int | None
    parameters: int
    buffers: int
    gradients: int
    optimizer: int


def standing(network: nn.Module) -> dict[str, int]:
    """Memory of training besides activations, as fields of :class:`Memory`."""
    trained = _bytes(p for p in network.parameters() if p.requires_grad)
    return {"parameters": _bytes(network.parameters()), "buffers": _bytes(network.buffers()), "gradients": trained,
            "optimizer": 2 * trained}


def _bytes(tensors: Iterator[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def training_peak(network: nn.Module, forward: Callable[[], Output], device: torch.device) -> int:
    """Peak of a forward and a backward pass of a network in training mode, whose gradients are already allocated.
    Losses are left out, except for the gradient that every loss returns, of the size of its prediction (auxiliary ones
    too)."""
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        output = forward()
        predictions = [*output.final.values(), *(x for extra in output.auxiliary for x in extra.prediction.values())]
        torch.stack([Supervision.apply(x) for x in predictions]).sum().backward()

    try:
        return peak(step, device)
    finally:
        network.zero_grad(set_to_none=True)


class Supervision(torch.autograd.Function):
    """A stand-in for a loss, without memory of its own."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor) -> Tensor:
        ctx.size, ctx.device, ctx.dtype = prediction.shape, prediction.device, prediction.dtype
        return prediction.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.ones(ctx.size, device=ctx.device, dtype=ctx.dtype)


def peak(step: Callable[[], object], device: torch.device) -> int:
    """The peak number of bytes allocated by ``step``."""
    counted: Any = torch.get_device_module(device)
    if device.type != "cpu" and hasattr(counted, "max_memory_allocated"):
        step()  # libraries allocate their workspaces at first use
        devices.synchronize(device)
        counted.reset_peak_memory_stats(device)
        before = int(counted.memory_allocated(device))
        step()
        return int(counted.max_memory_allocated(device)) - before
    with StorageWatch() as watch:
        step()
    return watch.peak


class StorageWatch(TorchDispatchMode):
    """Tracks the storages that operators make, each until it is freed.

    Attributes:
        alive: bytes currently allocated.
        peak: maximum of ``alive`` so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):  # tensors not made by an operator existed before
            self._meet(tensor, 0)
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self._meet(tensor, tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, self.alive)
        return result

    def _meet(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return

        def forget(_: object) -> None:
            del self._known[key]  # a later storage may reuse its address
            self.alive -= size

        self._known[key] = weakref.ref(storage, forget)
        self.alive += size


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.layout is torch.strided]
