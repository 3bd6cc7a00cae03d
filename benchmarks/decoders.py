"""Time and memory of every decoder on one backbone, against plain heads in the same run.

    python benchmarks/decoders.py --plot decoders.png
    python benchmarks/decoders.py heads invpt invpt:message_passing=false --model vit_base_patch16_384 --taps
    python benchmarks/decoders.py --device cuda --batch 4

Without names it takes the whole catalog, `heads` first, the reference. All have the recipe's backbone and tasks (13
classes, depth, normals); a decoder that has an encoder of its own name comes with it, the others share everything. One
that is made for one size of image is made for this one; one that cannot be had on this backbone is named with the
reason.

A step is forward, losses of all tasks, backward and Adam on random images and labels, channels last as in training;
inference is one image in evaluation mode without gradients. Decoders take turns, so that a disturbance of the machine
meets all of them. "times" is the median of the ratios to the reference within a turn, "GMAC" is of one image, "peak" is
what operators allocate beside the network. Prints a table and JSON; --plot draws time and memory of a step against
multiply-adds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from network_step import Subject, seconds, subject
from polyptych.comparison.specification import spell, with_network
from polyptych.decoders._base import CATALOG as DECODERS
from polyptych.encoders._base import CATALOG as ENCODERS
from polyptych.errors import InputError
from polyptych.host_memory import keep_freed_memory
from polyptych.logbook import environment
from polyptych.profiling.memory import peak
from polyptych.recipes._catalog import load
from polyptych.run import Run

REFERENCE = "heads"
MIB = 2**20


@dataclass
class Row:
    """One decoder: seconds, ratios to the reference, bytes."""

    decoder: str
    parameters: int
    multiply_adds: int
    step: float = 0.0
    step_times: float = 0.0
    inference: float = 0.0
    inference_times: float = 0.0
    step_peak: int = 0
    inference_peak: int = 0


def network_of(run: Run, decoder: str) -> str:
    """The network's text: the decoder with the encoder that belongs to it, made for the run's size."""
    name = decoder.partition(":")[0]
    made = with_network(run, f"{name if name in ENCODERS.names() else 'shared'}+{decoder}")
    sized = {field.name: run.size for field in fields(made.decoder) if field.name == "size"}
    return spell(made.encoder, replace(made.decoder, **sized), given=run.decoder)


def subjects_of(run: Run, decoders: list[str], batch_size: int,
                device: torch.device) -> tuple[list[Subject], dict[str, str]]:
    """Those that make a training step and a prediction, with these passed once, and why the others do not."""
    found, skipped = [], {}
    for decoder in decoders:
        try:
            made = subject(run, network_of(run, decoder), run.size, batch_size, device=device)
            made.step()
            made.network.eval()
            made.infer()
        except (InputError, RuntimeError, ValueError) as error:  # a network that does not fit says so in many ways
            reason = " ".join(str(error).split()) or type(error).__name__
            skipped[decoder] = reason if isinstance(error, InputError) else f"{type(error).__name__}: {reason}"
        else:
            made.name = decoder
            found.append(made)
    return found, skipped


def measure(subjects: list[Subject], turns: int, device: torch.device) -> list[Row]:
    rows = [Row(each.name, each.parameters, each.multiply_adds) for each in subjects]
    for each, row in zip(subjects, rows, strict=True):
        row.inference_peak = peak(each.infer, device)
        each.network.train()
        row.step_peak = peak(each.step, device)
    for row, medians in zip(rows, take_turns([each.step for each in subjects], turns, device), strict=True):
        row.step, row.step_times = medians
    for each in subjects:
        each.network.eval()
    for row, medians in zip(rows, take_turns([each.infer for each in subjects], turns, device), strict=True):
        row.inference, row.inference_times = medians
    return rows


def take_turns(passes: list[Callable[[], object]], turns: int, device: torch.device) -> list[tuple[float, float]]:
    """Of each, the median seconds and the median ratio to the first within a turn; a turn before warms up."""
    times = [[seconds(each, device) for each in passes] for _ in range(turns + 1)][1:]
    return [(statistics.median(turn[number] for turn in times),
             statistics.median(turn[number] / turn[0] for turn in times)) for number in range(len(passes))]


def plot(rows: list[Row], title: str, path: Path) -> None:
    """Two panels over multiply-adds: seconds and memory of a step; dashed, what grows as multiply-adds do."""
    import matplotlib
    matplotlib.use("agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
    from polyptych.reports.scatter import MARKERS

    from polyptych.reports.curves import COLORS

    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    kinds: list[tuple[str, Callable[[Row], float]]] = [
        ("training step, seconds", lambda row: row.step),
        ("peak memory of a step, MiB", lambda row: row.step_peak / MIB)]
    work = [row.multiply_adds for row in rows]
    ends = [0.8 * min(work), 1.25 * max(work)]
    for axes, (label, value) in zip(panels, kinds, strict=True):
        axes.loglog([end / 1e9 for end in ends], [value(rows[0]) * end / work[0] for end in ends],
                    color="0.6", linestyle="--", linewidth=1)
        for number, row in enumerate(rows):
            axes.loglog(row.multiply_adds / 1e9, value(row), linestyle="", markersize=8, markeredgewidth=0,
                        color=COLORS[number % len(COLORS)], marker=MARKERS[number % len(MARKERS)], label=row.decoder)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("multiply-adds of one image, billion")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25, which="both")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=9)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("decoders", nargs="*", help="as for `polyptych compare`; the first is the reference")
    parser.add_argument("--recipe", default="nyuv2_ema_net")
    parser.add_argument("--model", help="of timm; by default the recipe's")
    parser.add_argument("--taps", action="store_true", help="a vision transformer's maps at four depths")
    parser.add_argument("--size", type=int, nargs=2, default=(288, 384))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    run: Any = replace(load(options.recipe)(), size=tuple(options.size))
    changes = {"model": options.model} if options.model else {}
    changes |= {"vit_pyramid": "taps"} if options.taps else {}
    run = replace(run, backbone=replace(run.backbone, **changes))
    names = options.decoders or [REFERENCE, *(name for name in DECODERS.names() if name != REFERENCE)]
    subjects, skipped = subjects_of(run, names, options.batch, device)
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else environment()["processor"]
    title = (f"{run.backbone.model}, {len(run.tasks)} tasks, {run.size[0]}x{run.size[1]}, batch {options.batch}, "
             f"float32, {hardware}, {options.threads} threads, torch {torch.__version__}")
    print(title)
    for name, reason in skipped.items():
        print(f"{name}: left out, {reason}")
    rows = measure(subjects, options.turns, device)
    print(f"{'decoder':>22} {'parameters':>12} {'GMAC':>7} {'step/s':>8} {'times':>6} {'infer/s':>8} {'times':>6} "
          f"{'step peak/MiB':>13} {'infer/MiB':>9}")
    for row in rows:
        print(f"{row.decoder:>22} {row.parameters:>12,} {row.multiply_adds / 1e9:>7.1f} {row.step:>8.3f} "
              f"{row.step_times:>6.2f} {row.inference:>8.3f} {row.inference_times:>6.2f} {row.step_peak / MIB:>13.0f} "
              f"{row.inference_peak / MIB:>9.0f}")
    print(json.dumps({"benchmark": "decoders", "backbone": run.backbone.model, "size": run.size,
                      "batch": options.batch, "device": hardware, "threads": options.threads,
                      "torch": torch.__version__, "skipped": skipped, "rows": [vars(row) for row in rows]}))
    if options.plot:
        plot(rows, title, options.plot)


if __name__ == "__main__":
    main()
