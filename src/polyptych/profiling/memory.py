"""Peak memory of activations: by the allocator's own count on CUDA, by watching every storage on the CPU.

Both count what is allocated *beyond* the network, its gradients, its input and the optimizer. On the CPU a storage
counts from the operator that makes it until it is freed, so the number is exact and the same on every machine, but
workspaces inside a kernel are invisible; CUDA's includes them, and rounds every block up.
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
    """Bytes.

    Attributes:
        batch_size: of the two peaks.
        inference: peak of the activations of a forward pass that records no gradients.
        training: peak of the activations of a forward and backward pass; None when it was not asked for.
        parameters, buffers: of the network.
        gradients: of the parameters that are trained.
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
    """What training holds besides activations, as the fields of :class:`Memory`."""
    trained = _bytes(p for p in network.parameters() if p.requires_grad)
    return {"parameters": _bytes(network.parameters()), "buffers": _bytes(network.buffers()), "gradients": trained,
            "optimizer": 2 * trained}


def _bytes(tensors: Iterator[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def training_peak(network: nn.Module, forward: Callable[[], Output], device: torch.device) -> int:
    """Peak of a forward and a backward pass of a network in training mode, whose gradients exist already: a step adds
    to them. Losses are left out but for what every loss sends back: a gradient of the size of the prediction, for
    auxiliary predictions too."""
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
    """A loss without memory of its own."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor) -> Tensor:
        ctx.size, ctx.device, ctx.dtype = prediction.shape, prediction.device, prediction.dtype
        return prediction.new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.ones(ctx.size, device=ctx.device, dtype=ctx.dtype)


def peak(step: Callable[[], object], device: torch.device) -> int:
    """The most bytes that ``step`` has allocated at a time."""
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
    """Adds up the storages that operators make, each until it is freed.

    Attributes:
        alive: bytes at this moment.
        peak: the most there has been.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):  # whatever no operator made was there before
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
            del self._known[key]  # the next storage may have its address
            self.alive -= size

        self._known[key] = weakref.ref(storage, forget)
        self.alive += size


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and leaf.layout is torch.strided]
