"""Where the time of a training step goes: data, forward, backward, optimizer.

    python benchmarks/training_step.py rooms --measure 10
    python benchmarks/training_step.py nyuv2 --dataset.root DIR --loading.workers 1
    python benchmarks/training_step.py rooms --beside ../polyptych-0.1.0    # another checkout, in turns

Takes the arguments of `polyptych train`. "wait" is the time the loop stands still for the next batch, with the loader's
workers running as in training; "read" is what one batch costs when prepared in this process. Prints a table and JSON.
With ``--beside``, each checkout measures itself three times, in turns and in processes of its own; the shortest of its
medians counts, because whatever else runs only ever adds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import polyptych.cli.train  # noqa: F401 (parse shows its docstring as help)
from polyptych.cli._parsing import parse, take
from polyptych.data.loading import TrainingBatches
from polyptych.passes import total_loss
from polyptych.recipes._catalog import load
from polyptych.run import Run
from polyptych.training import Trainer
from polyptych.types import Batch


def parts(trainer: Trainer, batch: Batch) -> dict[str, float]:
    """Seconds of each part of one step, with the device synchronized in between."""
    clock = Clock(trainer.device)
    state = trainer.state
    state.network.train()
    batch = batch.to(trainer.device, trainer.memory_format)
    clock.lap("transfer")
    with trainer.autocast():
        output = trainer.forward(batch.image)
    clock.lap("forward")
    losses = {name: total_loss(task, name, output, batch).mean() for name, task in trainer.tasks.items()}
    clock.lap("losses")
    state.balancer.backward(losses, state.network, output)
    clock.lap("backward")
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    clock.lap("optimizer")
    return clock.laps


class Clock:
    def __init__(self, device: torch.device):
        self.device, self.laps = device, {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.laps[name], self.last = now - self.last, now


def measure(run: Run, steps: int) -> dict[str, float]:
    """Median seconds of each part over ``steps`` steps, after two that warm up."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(run, Path(folder) / "run", resume=False)
        rows, batches = [], iter(trainer.batches)
        for _ in range(steps + 2):
            start = time.perf_counter()
            batch = next(batches)
            rows.append({"wait": time.perf_counter() - start, **parts(trainer, batch)})
        alone = TrainingBatches(trainer.batches.dataset, trainer.tasks, run.augment, trainer.batches.size,
                                run.batch_size, seed=1)
        start = time.perf_counter()
        for number in range(3):
            alone.fetch(number)
        read = (time.perf_counter() - start) / 3
    medians = {name: statistics.median(row[name] for row in rows[2:]) for name in rows[0]}
    return {**medians, "step": sum(medians.values()), "read": read}


def beside(other: Path, arguments: list[str], turns: int = 3) -> None:
    """The table of this checkout and of another one, side by side."""
    found: dict[Path, list[dict[str, float]]] = {Path(__file__).parents[1]: [], other: []}
    for _ in range(turns):
        for checkout, measured in found.items():
            environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
            said = subprocess.run([sys.executable, checkout / "benchmarks/training_step.py", *arguments], check=True,
                                  env=environment, stdout=subprocess.PIPE, text=True).stdout
            measured.append(json.loads(said.splitlines()[-1])["seconds"])
    here, there = ({name: min(row[name] for row in rows) for name in rows[0]} for rows in found.values())
    print(f"{'':>10} {'here, ms':>10} {other.name + ', ms':>16}")
    for name in here:
        print(f"{name:>10} {1000 * here[name]:10.1f} {1000 * there[name]:16.1f} {here[name] / there[name] - 1:+8.1%}")


def main() -> None:
    chosen, rest = take(sys.argv[1:], {"measure", "beside"})
    if "beside" in chosen:
        beside(Path(chosen["beside"]), [*rest, "--measure", str(chosen.get("measure", 10))])
        return
    run = parse(Run, rest[1:], "train", default=load(rest[0])())
    steps = int(chosen.get("measure", 10))
    seconds = measure(replace(run, steps=max(run.steps, steps + 2)), steps)
    print(f"{run.recipe}: batch {run.batch_size}, workers {run.loading.workers}, {torch.get_num_threads()} threads, "
          f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'CPU'}")
    for name, value in seconds.items():
        print(f"{name:>10} {1000 * value:9.1f} ms {100 * value / seconds['step']:6.1f} %")
    print(f"{'':>10} {run.batch_size / seconds['step']:9.1f} images/s")
    print(json.dumps({"recipe": run.recipe, "batch_size": run.batch_size, "seconds": seconds}))


if __name__ == "__main__":
    main()
