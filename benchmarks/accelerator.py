"""Everything that README and docs promise of an accelerator, measured on one, in at most nine minutes.

    python benchmarks/accelerator.py                    # on what `auto` finds
    python benchmarks/accelerator.py --device cpu --small --minutes 0.2

First it checks what tests can only pretend: that a step waits for nothing, that the loss of a step is that of the CPU,
and that the precisions compute. Then it takes times and peak memory of every decoder and every balancer against equal
weights, of bfloat16 and of torch.compile, each as long as the time allows; what was not reached is said. Prints tables
for docs/RESULTS.md and ends with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from polyptych import devices, distributed
from polyptych.backbones.timm import Timm
from polyptych.balancers._base import CATALOG as BALANCERS
from polyptych.balancers._weighing import LossBalancer
from polyptych.datasets.rooms import Rooms
from polyptych.decoders._base import CATALOG as DECODERS
from polyptych.errors import InputError
from polyptych.recipes.rooms import rooms
from polyptych.run import Execution, Loading, Monitoring, Run
from polyptych.training import Trainer
from polyptych.types import Batch

TOLERANCE = 1e-2  # of the losses of one step, relative to the CPU's: TF32 and other kernels


def recipe(device: str, small: bool, **execution: object) -> Run:
    size, batch, model = ((32, 64), 2, "test_resnet") if small else ((256, 320), 8, "resnet50")
    return replace(rooms(), dataset=Rooms.Config(size=size, val_frames=2, test_frames=2), size=size,
                   backbone=Timm.Config(model=model, pretrained=False), batch_size=batch, steps=10**6,
                   loading=Loading(check=0), monitoring=Monitoring(tensorboard=False),
                   execution=Execution(device=device, **execution))


@contextmanager
def begun(run: Run) -> Iterator[tuple[Trainer, list[Batch]]]:
    """A trainer, and the batches of one step."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(run, Path(folder) / "run", resume=False)
        batches, parts = iter(trainer.batches), getattr(trainer.balancer, "splits", 1)
        try:
            yield trainer, [next(batches) for _ in range(parts)]
        finally:
            trainer.held.close()


def measure(run: Run, seconds: float) -> tuple[float, int]:
    """Median seconds of a step, and the most bytes on the device (0 where it does not say)."""
    with begun(run) as (trainer, batches):
        device = trainer.device
        counted = torch.get_device_module(device)
        trainer.step(batches)
        trainer.step(batches)
        knows = device.type != "cpu" and hasattr(counted, "max_memory_allocated")
        if knows:
            counted.reset_peak_memory_stats(device)
        times: list[float] = []
        while len(times) < 3 or (sum(times) < seconds and len(times) < 50):
            devices.synchronize(device)
            start = time.perf_counter()
            trainer.step(batches)
            devices.synchronize(device)
            times.append(time.perf_counter() - start)
        return statistics.median(times), int(counted.max_memory_allocated(device)) if knows else 0


# -- checks ------------------------------------------------------------------------------------------------------


def check_losses(device: str, small: bool) -> str:
    """What is wrong with the losses of a first step; empty if nothing is."""
    found = []
    for place in ("cpu", device):
        with begun(recipe(place, small)) as (trainer, batches):
            losses, _ = trainer.step(batches)
            found.append({task: float(loss) for task, loss in losses.items()})
    off = {task: (value, found[1][task]) for task, value in found[0].items()
           if not abs(value - found[1][task]) <= TOLERANCE * max(abs(value), 1e-3)}
    return f"losses on the CPU and here: {off}" if off else ""


def check_waits(device: str, small: bool, name: str) -> str:
    """What the host waits for in a step, as CUDA itself reports it; other devices do not say."""
    if not device.startswith("cuda"):
        return ""
    most = 0 if issubclass(BALANCERS.load(name), LossBalancer) else 2
    with begun(replace(recipe(device, small), balancer=BALANCERS.load(name).Config())) as (trainer, batches):
        pinned = [batch.pin_memory() for batch in batches]
        trainer.step(pinned)
        trainer.step(pinned)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                trainer.step(pinned)
            finally:
                torch.cuda.set_sync_debug_mode("default")
    waits = [str(one.message).splitlines()[0] + f" ({Path(one.filename).name}:{one.lineno})" for one in said
             if "synchroniz" in str(one.message)]
    return f"{name}: {len(waits)} waits, at most {most}: {waits}" if len(waits) > most else ""


# -- tables ------------------------------------------------------------------------------------------------------


def variants(device: str, small: bool) -> Iterator[tuple[str, Run]]:
    """What is measured, the most important first."""
    plain = replace(recipe(device, small), balancer=BALANCERS.load("equal").Config())
    yield "equal, heads, float32", plain
    yield "bfloat16", replace(plain, execution=Execution(device=device, precision="bfloat16"))
    if not small:
        yield "bfloat16, compiled", replace(plain, execution=Execution(device=device, precision="bfloat16",
                                                                       compile=True))
    for name in BALANCERS.names():
        if name != "equal":
            yield f"balancer {name}", replace(plain, balancer=BALANCERS.load(name).Config())
    for name in DECODERS.names():
        if name != "heads":
            yield f"decoder {name}", replace(plain, decoder=DECODERS.load(name).Config())
    if not small:
        yield "ema_net at 1024x2048, one image", replace(
            plain, decoder=DECODERS.load("ema_net").Config(), size=(1024, 2048), batch_size=1,
            dataset=Rooms.Config(size=(1024, 2048), val_frames=2, test_frames=2))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, default=9.0, help="after so long no other measurement begins")
    parser.add_argument("--small", action="store_true", help="a tiny network, to see that all of this runs")
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    device = str(distributed.local_device(options.device, "--device"))
    place = torch.device(device)
    print(f"{devices.name_of(place) if place.type != 'cpu' else 'CPU'}, torch {torch.__version__}\n")
    failures = [check_losses(device, options.small)]
    failures += [check_waits(device, options.small, name) for name in ("equal", "famo", "mgda", "moco")]
    for failure in filter(None, failures):
        print(f"FAILED: {failure}")
    print("| what | ms a step | times the first | peak memory, MiB |\n|---|---|---|---|")
    first, left = 0.0, []
    for label, run in variants(device, options.small):
        if time.monotonic() > end:
            left.append(label)
            continue
        try:
            seconds, memory = measure(run, 0.0 if options.small else 3.0)
        except (InputError, RuntimeError) as error:  # one that does not fit must not hide the others
            print(f"| {label} | {str(error).splitlines()[0][:80]} | | |")
            continue
        first = first or seconds
        print(f"| {label} | {1000 * seconds:.1f} | {seconds / first:.2f} | {memory / 2**20:.0f} |", flush=True)
    if left:
        print(f"\nnot reached in {options.minutes:g} minutes: {', '.join(left)}")
    return 1 if any(failures) else 0


if __name__ == "__main__":
    sys.exit(main())
