"""What devices can do: which ones exist, their random numbers, their widest type, asynchronous copies, and the device
of shapes alone.

To the rest of the library CUDA, ROCm (which torch also calls ``cuda``), Apple's MPS and Intel's XPU are the same thing:
whatever ``torch.accelerator`` finds. Nothing here initializes a device that was not asked for: that takes hundreds of
megabytes, and afterwards processes can no longer be forked.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from polyptych.errors import InputError

LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PMI_LOCAL_RANK")
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


def accelerators() -> tuple[str, int]:
    """The type of accelerator in this machine and how many there are; ``("cpu", 0)`` if there is none."""
    there = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return (there.type, torch.accelerator.device_count()) if there is not None else ("cpu", 0)


def own_index(there: int) -> int | None:
    """The index of this process's accelerator on this machine; None if there is only one process.

    ``torchrun`` announces it, other launchers under other names; one that announces nothing is assumed to fill one
    machine after the other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and "LOCAL_RANK" not in os.environ:
        return None
    said = next((int(os.environ[name]) for name in LOCAL_RANKS if name in os.environ), None)
    if said is None:
        return int(os.environ.get("RANK", "0")) % max(there, 1)
    # A launcher may show each process only its own device, which then has index 0 everywhere.
    return 0 if there == 1 and any(name in os.environ for name in VISIBLE) else said


def name_of(device: torch.device) -> str:
    """The vendor's name of an accelerator."""
    module: Any = torch.get_device_module(device)
    return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else device.type


# -- types -------------------------------------------------------------------------------------------------------


def widest(device: torch.device) -> torch.dtype:
    """The type for sums that must not drift: float64, or float32 if the device has nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64


def widened(x: Tensor) -> Tensor:
    return x.to(widest(x.device))


def for_metrics(device: torch.device) -> torch.device:
    """Where metrics are accumulated: on the device of the predictions, unless the sums would lose digits there."""
    return device if widest(device) == torch.float64 else torch.device("cpu")


def check_precision(device: torch.device, precision: str) -> None:
    """Try the precision on the device with one small product.

    Raises:
        InputError: the device cannot compute in this precision.
    """
    dtype: torch.dtype = getattr(torch, precision)
    if device.type == "cpu" or dtype == torch.float32:
        return
    try:
        with torch.autocast(device.type, dtype), torch.no_grad():
            small = torch.ones(8, 8, device=device)
            product = small @ small
        if product.dtype != dtype:
            raise RuntimeError(f"autocast made {product.dtype}")
        if dtype == torch.float16:  # its losses are scaled
            torch._amp_foreach_non_finite_check_and_unscale_(
                [small], torch.zeros((), device=device), torch.ones((), device=device))
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise InputError("--execution.precision", f"{precision}, which {device} does not have "
                         f"({str(error).splitlines()[0][:80]})", "a precision of the device",
                         "use --execution.precision float32") from None


# -- random numbers ----------------------------------------------------------------------------------------------


def random_state(device: torch.device) -> Tensor:
    """State of the random generator that operators on this device draw from."""
    if device.type == "cpu":
        return torch.get_rng_state()
    module: Any = torch.get_device_module(device)
    state: Tensor = module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)
    return state


def set_random_state(device: torch.device, state: Tensor) -> None:
    if device.type == "cpu":
        torch.set_rng_state(state)
        return
    module: Any = torch.get_device_module(device)
    module.set_rng_state(state) if device.type == "mps" else module.set_rng_state(state, device)


def random_states(devices: Iterable[torch.device]) -> dict[torch.device, Tensor]:
    """States of the generators of the host and of these devices. (``meta`` computes nothing and draws nothing.)"""
    drawing = dict.fromkeys(device for device in devices if device.type != "meta")
    return {device: random_state(device) for device in {torch.device("cpu"): None} | drawing}


@contextmanager
def same_random(devices: Iterable[torch.device]) -> Iterator[None]:
    """Restore the random states of the host and of these devices afterwards, as if nothing had been drawn."""
    before = random_states(devices)
    try:
        yield
    finally:
        for device, state in before.items():
            set_random_state(device, state)


# -- shapes alone ------------------------------------------------------------------------------------------------


@contextmanager
def shapes_only() -> Iterator[None]:
    """Networks that are built here have shapes, no memory, and no values: they are on the meta device, where
    initialization, which would change nothing, is left out. There it is Python code and takes most of the time."""
    with torch.device("meta"), _Uninitialized():
        yield


class _Uninitialized(TorchFunctionMode):
    FILLING = frozenset({"uniform_", "normal_", "erfinv_", "clamp_", "mul_", "add_", "fill_", "zero_"})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self.FILLING and args and isinstance(args[0], Tensor) and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


# -- copies ------------------------------------------------------------------------------------------------------


def pins(device: torch.device) -> bool:
    """Whether copies from pinned memory to this device overlap with its work. (MPS shares the memory of the host.)"""
    return device.type in ("cuda", "xpu")


def sent(values: Tensor | Sequence[float] | Sequence[int], device: torch.device,
         dtype: torch.dtype | None = None) -> Tensor:
    """Send a few numbers from the host to the device without waiting for the copy."""
    here = values if isinstance(values, Tensor) else torch.tensor(values)
    return here.to(device, dtype if dtype is not None else here.dtype, non_blocking=True)


def fetched(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy tensors from one device to the host: all copies are started before the first is awaited."""
    device = next((x.device for x in values.values()), torch.device("cpu"))
    if not pins(device):
        return {name: x.cpu() for name, x in values.items()}
    here = {name: torch.empty_like(x, device="cpu", pin_memory=True).copy_(x, non_blocking=True)
            for name, x in values.items()}
    synchronize(device)
    return here


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished all queued work."""
    if device.type != "cpu":
        module: Any = torch.get_device_module(device)
        module.synchronize() if device.type == "mps" else module.synchronize(device)
