"""Latency of one image with its spread, and throughput against the batch size."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from polyptych import devices

WARM_UP, LARGEST_BATCH = 3, 1024


@dataclass(frozen=True)
class Latency:
    """Seconds of a forward pass with one image: the median, and the 10th and 90th percentile, over ``runs`` runs."""

    median: float
    percentile_10: float
    percentile_90: float
    runs: int


@dataclass(frozen=True)
class Rate:
    """Images per second at a batch size, from the median time of its batches."""

    batch_size: int
    images_per_second: float


@dataclass(frozen=True)
class Throughput:
    """Rates at batch sizes 1, 2, 4, ..., and the reason why larger ones were not measured."""

    rates: tuple[Rate, ...]
    stopped_by: Literal["memory", "time", "largest batch"]

    @property
    def best(self) -> Rate:
        return max(self.rates, key=lambda rate: rate.images_per_second)


def latency(step: Callable[[], object], device: torch.device, repeats: int, seconds: float) -> Latency:
    """Time ``repeats`` runs after warm-up; fewer, but at least three, if ``seconds`` have passed."""
    _times(step, device, 1, WARM_UP, seconds / 10)
    times = _times(step, device, min(3, repeats), repeats, seconds)
    spread = statistics.quantiles(times, n=10, method="inclusive") if len(times) > 1 else times
    return Latency(statistics.median(times), spread[0], spread[-1], len(times))


def throughput(step: Callable[[int], Callable[[], object]], device: torch.device, bytes_per_image: int,
               seconds: float) -> Throughput:
    """Double the batch size until the memory or about ``seconds`` are used up.

    Args:
        step: the forward pass for a batch size.
        bytes_per_image: size of the activations per image.
    """
    rates: list[Rate] = []
    end = time.perf_counter() + seconds
    batch = 1
    while batch <= LARGEST_BATCH:
        if batch > 1 and batch * bytes_per_image > _free_memory(device):
            return Throughput(tuple(rates), "memory")
        try:
            run = step(batch)
            warm = min(_times(run, device, 1, WARM_UP, seconds / 20))
            median = statistics.median(_times(run, device, 1, 5, seconds / 10))
        except RuntimeError as error:  # the CPU's allocator has no exception of its own
            if not rates or not is_out_of_memory(error):
                raise
            return Throughput(tuple(rates), "memory")
        rates.append(Rate(batch, batch / median))
        if time.perf_counter() + 4 * warm > end:  # the next one warms up and runs, at twice the time
            return Throughput(tuple(rates), "time")
        batch *= 2
    return Throughput(tuple(rates), "largest batch")


def is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _times(step: Callable[[], object], device: torch.device, least: int, most: int, seconds: float) -> list[float]:
    """Seconds of each run: at least ``least`` of them, and no new one after ``seconds``."""
    times: list[float] = []
    while len(times) < least or (len(times) < most and sum(times) < seconds):
        times.append(_time_on_cuda(step, device) if device.type == "cuda" else _time_on_host(step, device))
    return times


def _time_on_host(step: Callable[[], object], device: torch.device) -> float:
    devices.synchronize(device)
    start = time.perf_counter()
    step()
    devices.synchronize(device)
    return time.perf_counter() - start


def _time_on_cuda(step: Callable[[], object], device: torch.device) -> float:
    with torch.cuda.device(device):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        step()
        end.record()
        end.synchronize()
    return start.elapsed_time(end) / 1000


def _free_memory(device: torch.device) -> float:
    """Bytes that may be allocated. An accelerator raises an error when it runs out; on the CPU, the process would be
    killed."""
    if device.type != "cpu" or "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return float("inf")
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2
