"""What is measured: a copy of a network on a device, so that the network itself stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from polyptych import devices, distributed
from polyptych.logbook import environment
from polyptych.networks import Network, normalizing
from polyptych.profiling.memory import training_peak
from polyptych.types import Output

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Setting:
    """Conditions under which a profile was measured.

    Attributes:
        size: height and width of the image; the network may pad it.
        hardware: name of the processor or of the accelerator.
        threads: number of CPU threads.
    """

    size: tuple[int, int]
    device: str
    hardware: str
    threads: int
    precision: Precision
    channels_last: bool
    torch: str


class Subject:
    """A copy of the network on the device, and forward passes of it."""

    def __init__(self, network: Network, size: tuple[int, int], device: torch.device, precision: Precision,
                 channels_last: bool):
        self.size, self.device, self.precision = size, device, precision
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = copy.deepcopy(network).to(device, memory_format=self.format).eval()  # type: ignore[call-overload]
        self.network.zero_grad(set_to_none=True)

    def forward(self, batch_size: int) -> Callable[[], Output]:
        """A forward pass on random images, which are created here, outside the pass."""
        random = torch.Generator().manual_seed(0)
        image = torch.rand(batch_size, 3, *self.size, generator=random).to(self.device, memory_format=self.format)
        dtype = getattr(torch, self.precision)

        def forward() -> Output:
            with torch.autocast(self.device.type, dtype, enabled=dtype is not torch.float32):
                return self.network(image)

        return forward

    def training_peak(self, batch_size: int) -> int:
        self.network.train()
        try:
            with normalizing(batch_size, self.size):
                return training_peak(self.network, self.forward(batch_size), self.device)
        finally:
            self.network.eval()

    def setting(self) -> Setting:
        about = environment()
        hardware = devices.name_of(self.device) if self.device.type != "cpu" else str(about["processor"])
        return Setting(self.size, str(self.device), hardware, torch.get_num_threads(), self.precision,
                       self.format is torch.channels_last, torch.__version__)


@contextmanager
def trainable(network: nn.Module) -> Iterator[None]:
    """Context in which frozen parameters are part of the autograd graph."""
    frozen = [p for p in network.parameters() if not p.requires_grad and p.is_floating_point()]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def find_device(name: str) -> torch.device:
    """A device that is there and keeps time.

    Raises:
        InputError: an unknown name, or a device that this machine lacks.
    """
    return distributed.local_device(name, "--device")
