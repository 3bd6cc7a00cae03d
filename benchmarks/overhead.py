"""What the trainer costs over the loop that one would write by hand: the same network, losses, balancer and optimizer.

    python benchmarks/overhead.py                         # every recipe in small form
    python benchmarks/overhead.py rooms nyud_invpt --repeats 20

The plain loop is the forward pass, the losses, the weighed sum, its backward pass and the optimizer's step on batches
that lie in memory. The trainer does on the same batches what a run needs besides: labels are counted over micro-batches
and processes, losses watched, means of the epoch kept, random states remembered. Steps of both alternate, each first in
every other pair, and the median of the pairs' ratios of processor time counts, because whatever else runs slows
neighbors alike. Printed beside it: half the width of the median's 95% interval (by order statistics). Recipes keep
their decoder, tasks, optimizer, accumulation and clipping; backbone, size and data are small (and the trainer's share
is larger).
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from scipy.stats import binom
from torch import Tensor

from polyptych.backbones.segnet import SegNet
from polyptych.backbones.timm import Timm
from polyptych.backbones.wide_resnet import WideResNet
from polyptych.balancers.scale_invariant import ScaleInvariant
from polyptych.data.preparation.facts import fixtures
from polyptych.errors import InputError
from polyptych.passes import total_loss
from polyptych.recipes._catalog import load, names
from polyptych.run import Execution, Loading, Monitoring, Run
from polyptych.training import Trainer
from polyptych.types import Batch

SIZE = (96, 128)
LARGEST = 0.02  # of a step: what the trainer may cost


def small(name: str, data: Path) -> Run:
    """A recipe on a miniature of its data (written there), with a small backbone of the same kind."""
    run = load(name)()
    size = run.size if run.size and max(run.size) < max(SIZE) else SIZE
    encoder = run.encoder
    if any(field.name == "size" for field in fields(encoder)):
        encoder = replace(encoder, size=size)
    return replace(run, dataset=miniature(run, data), backbone=backbone(run), encoder=encoder, size=size, batch_size=2,
                   steps=10**6, loading=Loading(check=0), execution=Execution(device="cpu"),
                   monitoring=Monitoring(examples=0, trivial_samples=1))


def miniature(run: Run, data: Path) -> Any:
    """Made-up data in the first layout that has labels for all tasks of the recipe."""
    writers = fixtures(run.dataset.name)
    asked = getattr(run.dataset, "layout", "auto")
    for layout in writers if asked not in writers else [asked]:
        root = data / f"{run.dataset.name}-{layout}"
        if not root.exists():
            root.mkdir()
            writers[layout](root)
        try:
            whole = {"crop": "none"} if hasattr(run.dataset, "crop") else {}  # a miniature is too small to crop
            config = replace(run.dataset, root=root, **whole)
            config.build(split="train", tasks=tuple(run.tasks)).read(0)
            return config
        except InputError:
            continue
    return replace(run.dataset, size=SIZE, val_frames=2, test_frames=2)  # rooms makes its images itself


def backbone(run: Run) -> Any:
    config = run.backbone
    if isinstance(config, Timm.Config):
        kinds = {"vit": "vit_tiny_patch16_224", "swin": "swin_tiny_patch4_window7_224", "hrnet": "hrnet_w18_small"}
        model = next((small for kind, small in kinds.items() if config.model.startswith(kind)), "resnet18")
        return replace(config.without_weights(), model=model)
    return {"segnet": SegNet.Config(width=16, bottom_width=64), "wide_resnet": WideResNet.Config()}[config.name]


def plain_step(trainer: Trainer, micro_batches: list[Batch]) -> None:
    """As one writes it, for a constant weight of each task or the sum of the logarithms of the losses."""
    network, optimizer, tasks = trainer.state.network, trainer.state.optimizer, trainer.tasks
    weights = getattr(trainer.balancer, "weights", dict.fromkeys(tasks, 1.0))
    network.train()
    counts = {name: sum(float(batch.valid[name].sum()) for batch in micro_batches) for name in tasks}

    def losses(batch: Batch) -> list[Tensor]:
        output = network(batch.image.contiguous(memory_format=trainer.memory_format))
        return [total_loss(task, name, output, batch).sum / max(counts[name], 1) for name, task in tasks.items()]

    if isinstance(trainer.balancer, ScaleInvariant) and len(micro_batches) > 1:
        # The weight of a task is one over its loss in all micro-batches: a loop by hand also runs them twice.
        with torch.no_grad():
            whole = torch.stack([torch.stack(losses(batch)) for batch in micro_batches]).sum(0)
        weights = dict(zip(tasks, whole.reciprocal().tolist(), strict=True))
    for batch in micro_batches:
        weighted = [weights[name] * loss for name, loss in zip(tasks, losses(batch), strict=True)]
        torch.stack(weighted).sum().backward()
    if trainer.run.clip:
        torch.nn.utils.clip_grad_norm_(network.parameters(), trainer.run.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def compare(run: Run, repeats: int, seconds: float) -> tuple[list[float], list[float]]:
    """Seconds of processor time of steps by hand and of the trainer's, pair by pair."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(run, Path(folder) / "run", resume=False)
        try:
            batches = iter(trainer.batches)
            given = [next(batches) for _ in range(run.accumulate)]
            kinds: list[Callable[[], object]] = [lambda: plain_step(trainer, given), lambda: trainer.step(given)]
            found: tuple[list[float], list[float]] = ([], [])
            rounds, begun = 0, time.perf_counter()
            while rounds < repeats + 1 and (rounds < 4 or time.perf_counter() - begun < seconds):
                for k in ((0, 1) if rounds % 2 else (1, 0)):
                    start = time.process_time()
                    kinds[k]()
                    took = time.process_time() - start
                    if rounds:  # the first step allocates
                        found[k].append(took)
                rounds += 1
            return found
        finally:
            trainer.held.close()


def half_width(ordered: list[float]) -> float:
    """Half the width of the interval between the order statistics that hold the median in 95 of 100 samples."""
    lowest = int(binom.ppf(0.025, len(ordered), 0.5))
    return (ordered[len(ordered) - 1 - lowest] - ordered[lowest]) / 2


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", help="default: all")
    parser.add_argument("--repeats", type=int, default=30, help="steps of each kind, at most")
    parser.add_argument("--seconds", type=float, default=30.0, help="for one recipe")
    options = parser.parse_args(arguments)
    worst = -1.0
    print("| recipe | by hand, ms | trainer's, more | give or take | pairs |\n|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as data:
        for name in options.recipes or names():
            plain, trained = compare(small(name, Path(data)), options.repeats, options.seconds)
            more = sorted(b / a - 1 for a, b in zip(plain, trained, strict=True))
            worst = max(worst, median(more))
            print(f"| `{name}` | {1000 * median(plain):.1f} | {median(more):+.1%} | {half_width(more):.1%} | "
                  f"{len(more)} |", flush=True)
    print(f"\nat most {100 * worst:.1f}% ({torch.get_num_threads()} thread(s), torch {torch.__version__})")
    return int(worst > LARGEST)


if __name__ == "__main__":
    raise SystemExit(main())
