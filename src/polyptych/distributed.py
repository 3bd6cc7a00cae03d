"""All collective operations. A run started by ``torchrun`` spans processes; otherwise they cost nothing."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from polyptych import devices
from polyptych.errors import InputError
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
    if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise InputError("WORLD_SIZE", f"{os.environ['WORLD_SIZE']}, without {', '.join(missing)}",
                         "all that processes need to find each other", "start the run by torchrun, or unset WORLD_SIZE")
    if device.type == "mps":
        raise InputError("--execution.device", f"mps for {os.environ['WORLD_SIZE']} processes", "one process, because "
                         "torch exchanges nothing between them on MPS", "start one, or use --execution.device cpu")
    backend = "gloo"
    if device.type != "cpu":
        module: Any = torch.get_device_module(device)
        module.set_device(device)
        # Host tensors are exchanged through gloo, so that nobody waits for the device.
        backend = f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
    dist.init_process_group(backend)
    try:
        yield
    except RuntimeError as error:
        if not _lost(error):
            raise
        raise InputError(f"process {rank()} of {world()}", f"no answer from another one ({str(error).splitlines()[0]})",
                         "every process of the run", "look for the error of the one that ended first, then start "
                         "`polyptych resume` with the folder of the run") from error
    finally:
        dist.destroy_process_group()


def _lost(error: RuntimeError) -> bool:
    """Whether the error means that another process ended in the middle of an exchange."""
    text = str(error).lower()
    signs = ("connection closed by peer", "connection reset by peer", "broken pipe", "gloo", "nccl", "socket")
    return isinstance(error, dist.DistError) or any(sign in text for sign in signs)


def local_device(name: str, where: str = "--execution.device") -> torch.device:
    """The device this process works on. ``auto`` takes the accelerator of this machine, or else the CPU. If the name
    has no index, each of several processes takes its own device.

    Raises:
        InputError: an unknown name, or a device that this machine lacks; the message names ``where``.
    """
    kind, there = devices.accelerators()
    if name == "auto":
        name = kind
    device = known_device(name, where)
    if device.type == kind != "cpu" and device.index is None and (own := devices.own_index(there)) is not None:
        name = f"{kind}:{own}"
        device = torch.device(name)
    if device.type != "cpu" and (device.type != kind or (device.index or 0) >= there):
        raise InputError(where, f"'{name}', which is not there", f"one of {_devices(kind, there)}", "choose one")
    return device


def known_device(name: str, where: str) -> torch.device:
    """The device of that name, whether this machine has it or not; ``auto`` means the CPU.

    Raises:
        InputError: no device that can compute has this name.
    """
    try:
        device = torch.device("cpu" if name == "auto" else name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type == "meta":
        do = "ROCm's are called cuda" if name.partition(":")[0] in ("rocm", "hip") else "choose one"
        raise InputError(where, f"'{name}'", f"one of {_devices(*devices.accelerators())}", do)
    return device


def _devices(kind: str, number: int) -> str:
    """The devices of this machine by name."""
    return ", ".join(["auto", "cpu", *([kind] if number else []), *(f"{kind}:{i}" for i in range(number))])


def parallel(network: nn.Module, device: torch.device, unused: Iterable[nn.Parameter] = ()) -> nn.Module:
    """The network, wrapped so that its backward pass averages gradients over processes if there are several.

    Args:
        unused: trainable parameters that reach no loss; nobody waits for their gradients. (``find_unused_parameters``
            would not find them: torch searches from every tensor in the output, used or not.)
    """
    if world() == 1:
        return network
    spread_from_main(network)
    left_out = {id(p) for p in unused}
    wrapper = nn.parallel.DistributedDataParallel
    wrapper._set_params_and_buffers_to_ignore_for_model(
        network, [name for name, p in network.named_parameters() if id(p) in left_out])
    return wrapper(network, device_ids=[device] if device.type != "cpu" else None)


def shard(network: nn.Module, parts: Iterable[nn.Module], device: torch.device) -> None:
    """Shard the network (FSDP2): from now on each process keeps a part of every parameter and of its gradient.
    Parameters are gathered on the device only while needed: those of each of ``parts`` while it computes, the rest from
    the forward pass to the end of the backward pass.

    The parameters are replaced, so build the optimizer afterwards. A network that is too large for the device may be on
    the host when it is passed in.
    """
    from torch.distributed.device_mesh import init_device_mesh  # takes half a second, which other runs save
    from torch.distributed.fsdp import fully_shard

    # Predictions are views; torch warns of them because of in-place changes, which no loss makes.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    network.to(memory_format=torch.contiguous_format)  # FSDP cannot shard other layouts
    said = {name: {note: value for note, value in vars(p).items() if isinstance(value, bool | int)}
            for name, p in network.named_parameters()}  # read by the optimizer (polyptych.optim)
    spread_from_main(network)
    mesh = init_device_mesh(device.type, (world(),))
    for part in parts:
        fully_shard(part, mesh=mesh)
    fully_shard(network, mesh=mesh)
    for name, parameter in network.named_parameters():
        vars(parameter).update(said[name])


def share_of(value: Tensor, parameter: Tensor, *, numbers_too: bool = False) -> Tensor:
    """This process's part of a tensor that belongs to a parameter: the same part as of the parameter. A single number
    stays on the host, unless a fused optimizer needs it on the parameter's device (``numbers_too``)."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(parameter, DTensor) and value.ndim and value.shape == parameter.shape:
        value = value.to(parameter.device, parameter.dtype)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value.to(parameter.device) if numbers_too else value


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sharded tensors, gathered on the host of the main process; one at a time, because together they may not fit on a
    device. Every process must call this; what the others get is meaningless."""
    found = {}
    for name, value in tensors.items():
        if hasattr(value, "full_tensor"):
            value = value.full_tensor()
            value = value.cpu() if is_main() else value.new_zeros(0)
        found[name] = value
    return found


@contextmanager
def with_whole_parameters(network: nn.Module) -> Iterator[None]:
    """Within this context every process has all parameters whole, so that each may run the network, without gradients,
    as often as it needs."""
    if world() == 1:
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    parts = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def spread_from_main(network: nn.Module) -> None:
    """Every process gets the main one's parameters and buffers."""
    if world() > 1:
        for value in network.state_dict().values():
            value.copy_(from_main(value))


def share_buffers(networks: Iterable[nn.Module | None]) -> None:
    """Every process gets the main one's buffers (batch statistics)."""
    if world() > 1:
        for network in networks:
            for buffer in network.buffers() if network is not None else ():
                buffer.copy_(from_main(buffer))


def total(value: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    if world() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def mean(value: Tensor) -> Tensor:
    """The mean of a tensor over all processes."""
    return total(value) / world() if world() > 1 else value


def from_main(value: Tensor) -> Tensor:
    """The main process's value of a tensor, in every process."""
    if world() > 1:
        value = value.detach().clone()
        dist.broadcast(value, 0)
    return value


def average_(tensors: Sequence[Tensor]) -> None:
    """Average tensors over processes, in place; those of one type in one exchange."""
    if world() == 1:
        return
    # Sorted, because processes that exchange in different orders wait for each other forever.
    for dtype in sorted({x.dtype for x in tensors}, key=str):
        alike = [x for x in tensors if x.dtype == dtype]
        flat = alike[0].view(-1) if len(alike) == 1 and alike[0].is_contiguous() else torch.cat(
            [x.flatten() for x in alike])
        dist.all_reduce(flat)
        flat /= world()
        if flat.data_ptr() != alike[0].data_ptr():
            for x, part in zip(alike, flat.split([x.numel() for x in alike]), strict=True):
                x.copy_(part.view(x.shape))


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average ``.grad`` over processes. A missing gradient counts as zero; a parameter without one in any process keeps
    none."""
    if world() == 1:
        return
    parameters = list(parameters)
    if not parameters:
        return
    # Processes agree first on which gradients to exchange: a task without labels in one process leaves its head without
    # a gradient there, and an exchange in which one process takes no part never ends.
    present = torch.tensor([float(p.grad is not None) for p in parameters])
    used = [p for p, number in zip(parameters, total(present).tolist(), strict=True) if number]
    for parameter in used:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    average_([p.grad for p in used if p.grad is not None])


def merge(metric: Metric) -> None:
    """Add up a metric's sums over processes. A process that saw no image takes part with zeros."""
    if world() == 1:
        return
    # Names and shapes first: a process that saw no image has no sums, and must still join every exchange with zeros.
    described: list[dict[str, tuple[tuple[int, ...], torch.dtype]]] = [{} for _ in range(world())]
    dist.all_gather_object(described, {name: (tuple(v.shape), v.dtype) for name, v in metric.sums.items()})
    everything = {name: form for part in described for name, form in part.items()}
    for name, (shape, dtype) in sorted(everything.items()):
        value = metric.sums.get(name, torch.zeros(shape, dtype=dtype))
        metric.sums[name] = total(value.cpu())


def barrier() -> None:
    if world() > 1:
        dist.barrier()
