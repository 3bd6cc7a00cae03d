"""Every collective in the library. Started by ``torchrun``, a run spans processes; otherwise all of this is free."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polyptych.metrics._base import Metric


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes files and talks to the user."""
    return rank() == 0


@contextmanager
def group(device: torch.device) -> Iterator[None]:
    """Join the process group that torchrun announces in the environment, and leave it at the end."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def local_device(name: str) -> torch.device:
    """The device this process works on. ``auto`` takes CUDA, then the CPU; each of several processes its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    return torch.device(name)


def parallel(network: nn.Module, device: torch.device) -> nn.Module:
    """The network, with gradients averaged over processes in its backward pass where there are several."""
    if world() == 1:
        return network
    return nn.parallel.DistributedDataParallel(network, device_ids=[device] if device.type == "cuda" else None)


def total(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    if world() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average ``.grad`` over processes, for parameters outside the network (a balancer's own)."""
    if world() > 1:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = total(parameter.grad) / world()


def merge(metric: Metric) -> None:
    """Add up a metric's sums over processes. A process that saw nothing takes part with zeros."""
    if world() == 1:
        return
    described: list[dict[str, tuple[tuple[int, ...], torch.dtype]]] = [{} for _ in range(world())]
    dist.all_gather_object(described, {name: (tuple(v.shape), v.dtype) for name, v in metric.sums.items()})
    everything = {name: form for part in described for name, form in part.items()}
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    for name, (shape, dtype) in sorted(everything.items()):
        value = metric.sums.get(name, torch.zeros(shape, dtype=dtype))
        metric.sums[name] = total(value.to(device))


def barrier() -> None:
    if world() > 1:
        dist.barrier()
