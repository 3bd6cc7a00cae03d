"""Time and memory of a training step of every encoder, against `shared` in the same run.

    python benchmarks/encoders.py
    python benchmarks/encoders.py shared mtan nddr:shortcut=true --model resnet50 --output-stride 8 --head aspp
    python benchmarks/encoders.py --segnet --batch 1 --turns 3

All have one backbone, the same heads and the tasks of `nyuv2_mtan` (13 classes, depth, normals). A step is forward,
losses, backward and Adam on random images and labels, channels last as in training; the first encoder is the reference.
Encoders take turns, so that a disturbance of the machine meets all of them. "times" is the median of the ratios within
a turn, "GMAC" is of one image, "bound" is 1 + 0.35 T, what MTAN is meant to stay below with T tasks. "peak" is what
operators allocate beside the network. Prints a table and JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace

import torch

from network_step import CLASSES, Subject, peak, random_batch, seconds
from polyptych.backbones.segnet import SegNet
from polyptych.backbones.timm import Timm
from polyptych.comparison.specification import with_network
from polyptych.decoders.heads import Heads
from polyptych.host_memory import keep_freed_memory
from polyptych.logbook import environment
from polyptych.passes import total_loss
from polyptych.profiling.operators import count
from polyptych.recipes._catalog import load
from polyptych.run import Run
from polyptych.types import LabelInfo

ENCODERS = ("shared", "single", "mtan", "stan", "split", "dense", "cross_stitch", "nddr")


def subject(run: Run, name: str, batch_size: int) -> Subject:
    tasks = run.build_tasks({"semseg": LabelInfo(classes=tuple(map(str, range(CLASSES)))),
                             "depth": LabelInfo(unit="m"), "normals": LabelInfo()})
    torch.manual_seed(0)
    network = with_network(run, name).build_network(tasks, pretrained=False).train()
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    batch = random_batch(run.size, batch_size).to(torch.device("cpu"), torch.channels_last)

    def step() -> None:
        output = network(batch.image)
        losses = [total_loss(task, task_name, output, batch).mean() for task_name, task in tasks.items()]
        torch.stack(losses).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    counted, _ = count(network, lambda: network.eval()(batch.image[:1]))
    network.train()
    return Subject(name, sum(p.numel() for p in network.parameters()), sum(counted.by_operator.values()), step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoders", nargs="*", default=ENCODERS)
    parser.add_argument("--segnet", action="store_true", help="MTAN's own backbone and heads")
    parser.add_argument("--model", default="resnet18", help="of timm")
    parser.add_argument("--output-stride", type=int, default=32)
    parser.add_argument("--head", default="fused")
    parser.add_argument("--size", type=int, nargs=2, default=(288, 384))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=5, help="0: parameters and multiply-adds alone")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    run = replace(load("nyuv2_mtan")(), size=tuple(options.size))
    if not options.segnet:
        run = replace(run, backbone=Timm.Config(model=options.model, output_stride=options.output_stride),
                      decoder=Heads.Config(head=options.head))
    assert options.segnet == isinstance(run.backbone, SegNet.Config)
    subjects = [subject(run, name, options.batch) for name in options.encoders]
    peaks = [peak(each.step) if options.turns else None for each in subjects]
    if options.turns:
        for each in subjects:
            each.step()  # after this the memory of all is there
    turns = [[seconds(each.step) for each in subjects] for _ in range(options.turns)]
    backbone = "segnet" if options.segnet else f"{options.model} (stride {options.output_stride})"
    bound = 1 + 0.35 * len(run.tasks)
    print(f"{backbone}, {run.size[0]}x{run.size[1]}, batch {options.batch}, float32, {options.threads} threads of "
          f"{environment()['processor']}, torch {torch.__version__}; bound for mtan: {bound:.2f}")
    print(f"{'encoder':>24} {'parameters':>12} {'GMAC':>7} {'times':>6} {'step/s':>8} {'times':>6} {'peak/MiB':>9}")
    rows = []
    for number, each in enumerate(subjects):
        median = statistics.median(turn[number] for turn in turns) if turns else None
        times = statistics.median(turn[number] / turn[0] for turn in turns) if turns else None
        work = each.multiply_adds / subjects[0].multiply_adds
        rows.append({"encoder": each.name, "parameters": each.parameters, "multiply_adds": each.multiply_adds,
                     "seconds": median, "times": times, "peak": peaks[number]})
        measured = f"{median:>8.2f} {times:>6.2f} {peaks[number] / 2**20:>9.0f}" if turns else ""
        print(f"{each.name:>24} {each.parameters:>12,} {each.multiply_adds / 1e9:>7.1f} {work:>6.2f} {measured}")
    print(json.dumps({"benchmark": "encoders", "backbone": backbone, "size": run.size, "batch": options.batch,
                      "threads": options.threads, "bound": bound, "rows": rows}))


if __name__ == "__main__":
    main()
