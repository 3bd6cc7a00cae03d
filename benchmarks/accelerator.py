"""Everything that README and docs promise of an accelerator, measured on one, in at most nine minutes.

    python benchmarks/accelerator.py                    # on what `auto` finds
    python benchmarks/accelerator.py --nyuv2 data/nyuv2 # and the recipe `nyuv2` in half of the time
    python benchmarks/accelerator.py --device cpu --small --minutes 0.2

First it checks what tests can only pretend: that a step waits for nothing, that the loss of a step is that of the CPU,
and that recomputed blocks draw the same random numbers. Then it takes times and peak memory of every decoder and every
balancer against equal weights, of bfloat16, recomputation and torch.compile, and the speed of the loader, each as long
as the time allows; what was not reached is said. Prints tables for docs/RESULTS.md and ends with 1 if a check fails.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
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
from polyptych.recipes._catalog import load
from polyptych.recipes.rooms import rooms
from polyptych.run import Execution, Loading, Monitoring, Run
from polyptych.training import Trainer, measure_splits, train
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


def check_recomputation(device: str, small: bool) -> str:
    """Whether a step of blocks that are computed twice ends in other weights; kernels may round otherwise each time."""
    found = []
    for twice in (False, True):
        run = replace(recipe(device, small, recompute=twice), backbone=Timm.Config(
            model="test_vit" if small else "vit_small_patch16_224", drop_path=0.5, pretrained=False))
        with begun(run) as (trainer, batches):
            trainer.step(batches)
            found.append([p.detach().float().cpu() for p in trainer.state.network.parameters()])
    off = max(float((one - other).abs().max()) for one, other in zip(*found, strict=True))
    # One step of Adam moves a weight by about the learning rate whatever its gradient: other draws show in many.
    moved = statistics.mean(float(((one - other).abs() > 1e-6).float().mean())
                            for one, other in zip(*found, strict=True))
    return f"recomputed blocks: weights differ by {off:.2g}, {100 * moved:.0f} % of them" if moved > 0.05 else ""


# -- tables ------------------------------------------------------------------------------------------------------


def variants(device: str, small: bool) -> Iterator[tuple[str, Run]]:
    """What is measured, the most important first."""
    plain = replace(recipe(device, small), balancer=BALANCERS.load("equal").Config())
    yield "equal, heads, float32", plain
    yield "bfloat16", replace(plain, execution=Execution(device=device, precision="bfloat16"))
    yield "recomputed", replace(plain, execution=Execution(device=device, recompute=True))
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


def loading_speed(device: str, small: bool, workers: int, seconds: float) -> float:
    """Images per second that reach pinned memory."""
    with begun(replace(recipe(device, small), loading=Loading(check=0, workers=workers))) as (trainer, _):
        batches = iter(trainer.batches)
        next(batches)
        start, number = time.monotonic(), 0
        while time.monotonic() < start + seconds:
            number += len(next(batches).image)
        return number / (time.monotonic() - start)


def train_nyuv2(root: Path, device: str, seconds: float) -> None:
    """The recipe on packed frames, with as many steps as the time allows, and its test numbers."""
    run = load("nyuv2")()
    with tempfile.TemporaryDirectory() as folder:
        run = replace(run, dataset=replace(run.dataset, root=root), execution=Execution(device=device,
                      precision="bfloat16"), monitoring=replace(run.monitoring, validate_every=10**9),
                      loading=Loading(check=0, cache=Path(folder) / "packed", workers=min(8, os.cpu_count() or 1)))
        begin = time.monotonic()
        with begun(run) as (trainer, batches):
            for _ in range(3):
                trainer.step(batches)
            devices.synchronize(trainer.device)
            start = time.monotonic()
            for _ in range(10):
                trainer.step(batches)
            devices.synchronize(trainer.device)
            step = (time.monotonic() - start) / 10
        left = seconds - (time.monotonic() - begin)
        steps = max(10, int(0.7 * left / step))  # the rest is for packing, loading and testing
        print(f"\nnyuv2, bfloat16, {steps} steps of {run.batch_size} images at {1000 * step:.0f} ms", flush=True)
        train(replace(run, steps=steps), Path(folder) / "run", end=tested)


def tested(folder: Path, say: Callable[[object], None]) -> Path:
    measure_splits(folder, say)
    return folder


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--minutes", type=float, default=9.0, help="after so long no other measurement begins")
    parser.add_argument("--nyuv2", type=Path, help="a folder with NYUv2, on which half of the time is trained")
    parser.add_argument("--small", action="store_true", help="a tiny network, to see that all of this runs")
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes * (0.5 if options.nyuv2 else 1)
    device = str(distributed.local_device(options.device, "--device"))
    place = torch.device(device)
    print(f"{devices.name_of(place) if place.type != 'cpu' else 'CPU'}, torch {torch.__version__}\n")
    failures = [check_losses(device, options.small)]
    failures += [check_waits(device, options.small, name) for name in ("equal", "famo", "mgda", "moco")]
    failures.append(check_recomputation(device, options.small))
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
    for workers in (0, 1) if options.small else (0, 4, 8):
        speed = loading_speed(device, options.small, workers, 0.2 if options.small else 5.0)
        print(f"\nloader, {workers} processes: {speed:.0f} images/s", flush=True)
    if options.nyuv2:
        train_nyuv2(options.nyuv2, device, 30 * options.minutes)
    if left:
        print(f"\nnot reached in {options.minutes:g} minutes: {', '.join(left)}")
    return 1 if any(failures) else 0


if __name__ == "__main__":
    sys.exit(main())
