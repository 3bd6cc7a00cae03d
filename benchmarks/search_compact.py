"""What compact networks cost, against one backbone and against a pass per task: multiply-adds, parameters, time.

    python benchmarks/search_compact.py
    python benchmarks/search_compact.py resnet18 mobilenetv2_100 --size 224 --tasks 3 --repeats 15

For every network: all shared, trees (the first 60 % of the units shared; random ones), random choices per operation as
in AutoMTL (whose norms are per task), all own. Multiply-adds are counted by the profiler on the network that runs, the
time is the median of interleaved runs, and the number of calls of the busiest convolution is counted by hooks.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import median

import timm
import torch
from torch import nn

from polyptych.profiling.operators import count
from polyptych.search import compile, extract

NETWORKS = ["resnet18", "resnet34", "mobilenetv2_100", "mnasnet_100", "efficientnet_b0", "convnext_atto",
            "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "hrnet_w18_small"]


@dataclass(frozen=True)
class Row:
    """One compact network; multiply-adds, parameters and time in multiples of one backbone.

    Attributes:
        calls: of the module that runs most often.
    """

    network: str
    policy: str
    multiply_adds: float
    parameters: float
    time: float
    milliseconds: float
    calls: int


def compact_networks(name: str, tasks: tuple[str, ...]) -> tuple[nn.Module, dict[str, nn.Module]]:
    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    tree = compile(network, tasks, space="tree", skip=False).eval()
    free = compile(network, tasks, space="automtl", skip=False).eval()
    space, random = tree.space, Random(0)
    policies = {"all shared": (tree, space.all_shared()),
                "tree, 60 % shared": (tree, space.bottom_shared(round(0.6 * len(tree.units))))}
    policies |= {f"random tree {i}": (tree, space.draw(random)) for i in range(3)}
    policies["random per operation"] = (free, free.space.draw(random))
    policies["all own"] = (tree, space.all_own())
    return network, {name: extract(supermodel, policy) for name, (supermodel, policy) in policies.items()}


@torch.no_grad()
def measure(name: str, tasks: tuple[str, ...], size: int, batch: int, repeats: int) -> list[Row]:
    network, compacts = compact_networks(name, tasks)
    image = torch.rand(batch, 3, size, size)
    everything = {"one backbone": network, **compacts}
    times: dict[str, list[float]] = {key: [] for key in everything}
    for repeat in range(repeats + 2):
        for key, module in everything.items():
            start = time.perf_counter()
            module(image)
            if repeat >= 2:
                times[key].append(1000 * (time.perf_counter() - start))
    one = median(times["one backbone"])
    with torch.enable_grad():  # otherwise fused kernels escape the counter
        operations = {key: count(m, lambda m=m: m(image))[0].total for key, m in everything.items()}
    numbers = {key: sum(p.numel() for p in m.parameters()) for key, m in everything.items()}
    return [Row(name, key, operations[key] / operations["one backbone"], numbers[key] / numbers["one backbone"],
                median(times[key]) / one, median(times[key]), _most_calls(module, image))
            for key, module in everything.items()]


def _most_calls(module: nn.Module, image: torch.Tensor) -> int:
    calls: Counter[str] = Counter()
    handles = [part.register_forward_hook(lambda *_, path=path: calls.update([path]))
               for path, part in module.named_modules() if not any(True for _ in part.children())]
    module(image)
    for handle in handles:
        handle.remove()
    return max(calls.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS)
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[Row] = []
    tasks = tuple(f"task{i}" for i in range(arguments.tasks))
    print("| network | policy | multiply-adds | parameters | time | ms | calls of one module |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.networks:
        rows += measure(name, tasks, arguments.size, arguments.batch, arguments.repeats)
        for row in (row for row in rows if row.network == name):
            print(f"| {row.network} | {row.policy} | {row.multiply_adds:.2f} | {row.parameters:.2f} | {row.time:.2f} | "
                  f"{row.milliseconds:.1f} | {row.calls} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({
            "torch": torch.__version__, "timm": timm.__version__, "machine": platform.processor() or platform.machine(),
            "threads": arguments.threads, "tasks": arguments.tasks, "size": arguments.size, "batch": arguments.batch,
            "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
