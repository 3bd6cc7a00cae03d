"""Time and memory of a training step of whole networks, against plain heads in the same run.

    python benchmarks/network_step.py
    python benchmarks/network_step.py heads ema_net:fusion=shared pad_net:gate=source --threads 1
    python benchmarks/network_step.py ema_net:size=[1024,2048] --size 1024 2048 --batch 1 --turns 1

Networks are written as for `polyptych compare`; all have the recipe's backbone and tasks, and the first is the
reference. A step is forward, losses of all tasks, backward and Adam, on random images and labels, channels last as in
training. Networks take turns, so that a disturbance of the machine meets all of them; the median over the turns is
shown. "floor" is the time that the multiply-adds of the step, three times those of the forward pass, take at the rate
of a large convolution measured in the same run. "peak" is what operators allocate beside the network. Prints a table
and JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from polyptych.comparison.specification import with_network
from polyptych.host_memory import keep_freed_memory
from polyptych.logbook import environment
from polyptych.passes import total_loss
from polyptych.profiling.memory import StorageWatch
from polyptych.profiling.operators import count
from polyptych.recipes._catalog import load
from polyptych.run import Run
from polyptych.types import Batch, LabelInfo, SampleInfo

NETWORKS = ("heads", "pad_net", "pad_net:gate=source", "pap_net", "jtrl", "mti_net", "ema_net", "ema_net:fusion=shared",
            "ema_net_multi_scale", "ema_net_multi_scale:fusion=shared")
CLASSES = 13
CPU = torch.device("cpu")


@dataclass
class Subject:
    """A network with its optimizer, one training step of it, and a forward pass of one image without gradients (in
    whatever mode the network is)."""

    name: str
    parameters: int
    multiply_adds: int
    step: Callable[[], None]
    network: nn.Module | None = None
    infer: Callable[[], object] | None = None


def subject(run: Run, network_name: str, size: tuple[int, int], batch_size: int,
            layout: torch.memory_format = torch.channels_last, device: torch.device = CPU) -> Subject:
    run = with_network(replace(run, backbone=replace(run.backbone, pretrained=False)), network_name)
    tasks = run.build_tasks({"semseg": LabelInfo(classes=tuple(map(str, range(CLASSES)))),
                             "depth": LabelInfo(unit="m"), "normals": LabelInfo()})
    torch.manual_seed(0)
    network = run.build_network(tasks, pretrained=False).train().to(device, memory_format=layout)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    batch = random_batch(size, batch_size).to(device, layout)

    def step() -> None:
        output = network(batch.image)
        losses = [total_loss(task, name, output, batch).mean() for name, task in tasks.items()]
        torch.stack(losses).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def infer() -> object:
        return network(batch.image[:1])

    counted, _ = count(network, lambda: network.eval()(batch.image[:1]))  # training may compute convolutions otherwise
    network.train()
    return Subject(network_name, sum(p.numel() for p in network.parameters()), sum(counted.by_operator.values()), step,
                   network, infer)


def random_batch(size: tuple[int, int], batch_size: int) -> Batch:
    random = torch.Generator().manual_seed(0)
    image = torch.rand(batch_size, 3, *size, generator=random)
    target: dict[str, Tensor] = {
        "semseg": torch.randint(CLASSES, (batch_size, *size), generator=random),
        "depth": 1 + 9 * torch.rand(batch_size, *size, generator=random),
        "normals": torch.nn.functional.normalize(torch.randn(batch_size, 3, *size, generator=random), dim=1)}
    valid = {name: torch.ones(batch_size, *size, dtype=torch.bool) for name in target}
    return Batch(image, target, valid, [SampleInfo(str(i), size, size) for i in range(batch_size)])


def seconds(step: Callable[[], object], device: torch.device = CPU) -> float:
    start = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def peak(step: Callable[[], object]) -> int:
    with StorageWatch() as watch:
        step()
    return watch.peak


def rate_of_convolutions() -> float:
    """Multiply-adds per second of a large convolution, at its best of five."""
    image = torch.rand(2, 256, 72, 96).to(memory_format=torch.channels_last)
    weight = torch.rand(256, 256, 3, 3).to(memory_format=torch.channels_last)
    amount = image.numel() * weight[0].numel()
    return amount / min(seconds(lambda: torch.nn.functional.conv2d(image, weight, padding=1)) for _ in range(5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--recipe", default="nyuv2_ema_net")
    parser.add_argument("--size", type=int, nargs=2, default=(288, 384))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--contiguous", action="store_true", help="channels first in memory, torch's default")
    parser.add_argument("--return-memory", action="store_true", help="as glibc does by default")
    options = parser.parse_args()
    if not options.return_memory:
        keep_freed_memory()
    torch.set_num_threads(options.threads)
    size = tuple(options.size)
    layout = torch.contiguous_format if options.contiguous else torch.channels_last
    subjects = [subject(load(options.recipe)(), name, size, options.batch, layout) for name in options.networks]
    peaks = [peak(each.step) for each in subjects]
    for each in subjects:
        each.step()  # after this the memory of all is there
    rate = rate_of_convolutions()
    turns = [[seconds(each.step) for each in subjects] for _ in range(options.turns)]
    about = environment()
    print(f"{size[0]}x{size[1]}, batch {options.batch}, float32, channels {'first' if options.contiguous else 'last'}, "
          f"{options.threads} threads of {about['processor']}, "
          f"torch {torch.__version__}, {rate / 1e9:.0f} G multiply-adds/s in a convolution")
    print(f"{'network':>34} {'parameters':>11} {'GMAC':>6} {'step/s':>8} {'times':>6} {'floor/s':>8} {'peak/MiB':>9}")
    rows = []
    for number, each in enumerate(subjects):
        median = statistics.median(turn[number] for turn in turns)
        times = statistics.median(turn[number] / turn[0] for turn in turns)
        floor = 3 * options.batch * each.multiply_adds / rate
        rows.append({"network": each.name, "parameters": each.parameters, "multiply_adds": each.multiply_adds,
                     "seconds": median, "times": times, "floor": floor, "peak": peaks[number]})
        print(f"{each.name:>34} {each.parameters:>11,} {each.multiply_adds / 1e9:>6.1f} {median:>8.2f} {times:>6.2f} "
              f"{floor:>8.2f} {peaks[number] / 2**20:>9.0f}")
    print(json.dumps({"benchmark": "network_step", "size": size, "batch": options.batch, "threads": options.threads,
                      "rows": rows}))


if __name__ == "__main__":
    main()
