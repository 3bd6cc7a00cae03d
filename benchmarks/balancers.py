"""What a balancer costs: milliseconds and peak memory of a training step, by method, level and number of tasks.

    python benchmarks/balancers.py --tasks 3 --methods pcgrad nash_mtl
    python benchmarks/balancers.py --device cuda --size 480 640 --batch 8 --precision bfloat16
    python benchmarks/balancers.py --weights --tasks 2 8 64 --methods upgrad

Beside each method of the catalog, on every level that it has: torchjd's form of the same method (`mtl_backward`, then
`jac_to_grad`; one vector product at a time, and batched by vmap), and the flatten-and-copy form of research code,
written from its description: a row of a matrix in host memory for every task, filled parameter by parameter, and for
methods that weigh (not `pcgrad`) a further backward pass. All share one network: a ResNet-50 trunk and a head for every
task. Times are medians over turns in which every subject makes one step, so that a busy machine disturbs all alike;
`times` is against equal weights in the same turns. Memory is what the first step holds beyond network and image,
buffers that then stay included (on the CPU every storage is watched; on CUDA the allocator counts). With `--weights`,
only what follows from the gradients' inner products is measured: the weights of tasks, by us and by torchjd in the same
turns, and how far the two combined gradients lie apart (for UPGrad, torchjd wants its extra `quadprog_projector`).
Prints a table and JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from polyptych.backbones.timm import Timm
from polyptych.balancers._base import CATALOG
from polyptych.balancers._engine import undisturbed
from polyptych.balancers._gradients import GramBalancer, JacobianBalancer
from polyptych.decoders.heads import Heads
from polyptych.encoders.shared import Shared
from polyptych.host_memory import keep_freed_memory
from polyptych.logbook import environment
from polyptych.networks import Network
from polyptych.profiling.memory import StorageWatch
from polyptych.types import Output

TORCHJD = {"pcgrad": "PCGrad", "mgda": "MGDA", "aligned_mtl": "AlignedMTL", "upgrad": "UPGrad", "nash_mtl": "NashMTL",
           "imtl": "IMTLG", "cagrad": "CAGrad", "fairgrad": "FairGrad", "config": "ConFIG"}


@dataclass
class Bench:
    """A network, an image, and one loss for every task."""

    network: Network
    image: Tensor
    tasks: tuple[str, ...]
    precision: torch.dtype

    def forward(self) -> tuple[dict[str, Tensor], Output]:
        with torch.autocast(self.image.device.type, self.precision, enabled=self.precision is not torch.float32):
            output = self.network(self.image)
        return {task: (output.final[task].float() - number).abs().mean()
                for number, task in enumerate(self.tasks)}, output

    @property
    def trunk(self) -> list[nn.Parameter]:
        return list(self.network.encoder.parameters())

    def clear(self) -> None:
        self.network.zero_grad(set_to_none=True)


@dataclass
class Subject:
    name: str
    level: str
    step: Callable[[], None]


def build(options: argparse.Namespace, tasks: int) -> Bench:
    torch.manual_seed(0)
    names = tuple(f"task{i}" for i in range(tasks))
    network = Network.build(Timm.Config(model=options.model), Shared.Config(),
                            Heads.Config(head=options.head, width=options.width), dict.fromkeys(names, 4))
    device = torch.device(options.device)
    network.to(device, memory_format=torch.channels_last)
    image = torch.rand(options.batch, 3, *options.size).to(device, memory_format=torch.channels_last)
    return Bench(network, image, names, getattr(torch, options.precision))


def subjects(bench: Bench, methods: list[str], rivals: bool) -> Iterator[Subject]:
    yield Subject("equal", "loss", ours(bench, "equal", {}))
    for method in methods:
        kind = CATALOG.load(method)
        levels = ["loss"]
        if issubclass(kind, GramBalancer):
            levels = ["parameters"]
            if not issubclass(kind, JacobianBalancer):
                levels = ["parameters", "representation", "layer"]
            elif kind.combine_maps is not JacobianBalancer.combine_maps:
                levels = ["parameters", "representation"]
        for level in levels:
            yield Subject(method, level, ours(bench, method, {} if level == "loss" else {"level": level}))
        if rivals and method in TORCHJD:
            yield Subject(f"torchjd {TORCHJD[method]}", "parameters", of_torchjd(bench, TORCHJD[method], 1))
            if bench.precision is torch.float32:  # vmap fails on normalization under autocast
                yield Subject(f"torchjd {TORCHJD[method]} (vmap)", "parameters",
                              of_torchjd(bench, TORCHJD[method], None))
    if rivals:
        yield Subject("flatten and copy, pcgrad", "parameters", flatten_and_project(bench))
        yield Subject("flatten and copy, weights", "parameters", flatten_and_weigh(bench))


def ours(bench: Bench, method: str, options: dict[str, str]) -> Callable[[], None]:
    balancer = CATALOG.load(method).Config(**options).build(standard_weights=dict.fromkeys(bench.tasks, 1.0))
    passes = [bench.forward] * getattr(balancer, "splits", 1)

    def again() -> dict[str, Tensor]:
        with undisturbed(bench.network), torch.no_grad():
            return bench.forward()[0]

    def step() -> None:
        balancer.accumulate(passes, bench.network)
        if balancer.wants_after_step:
            balancer.after_step(again)
        bench.clear()

    return step


def of_torchjd(bench: Bench, name: str, chunk: int | None) -> Callable[[], None]:
    import torchjd.aggregation
    from torchjd.autojac import jac_to_grad, mtl_backward

    aggregator = getattr(torchjd.aggregation, name)(**_needed(name, len(bench.tasks)))
    heads = [list(bench.network.decoder.heads[task].parameters()) for task in bench.tasks]

    def step() -> None:
        losses, output = bench.forward()
        # One map suffices where the head reads one; more would need the trunk to be cut.
        mtl_backward(list(losses.values()), features=list(output.shared), tasks_params=heads, shared_params=bench.trunk,
                     retain_graph=False, parallel_chunk_size=chunk)
        jac_to_grad([p for p in bench.trunk if hasattr(p, "jac")], aggregator)
        bench.clear()

    return step


def _needed(name: str, tasks: int) -> dict[str, float]:
    """What torchjd's form of a method has no default for."""
    return {"FairGrad": {"alpha": 2.0}, "CAGrad": {"c": 0.4}, "NashMTL": {"n_tasks": tasks}}.get(name, {})


def flatten_and_project(bench: Bench) -> Callable[[], None]:
    """PCGrad on whole vectors, from rows in host memory."""
    trunk, number = bench.trunk, len(bench.tasks)

    def step() -> None:
        losses, _ = bench.forward()
        rows = torch.zeros(number, sum(p.numel() for p in trunk))
        for row, loss in zip(rows, losses.values(), strict=True):
            loss.backward(retain_graph=True)
            copy_to(row, [p.grad for p in trunk])
            for p in trunk:
                p.grad = None
        rows = rows.to(bench.image.device)
        projected = rows.clone()
        for i in range(number):
            for j in torch.randperm(number).tolist():
                inner = torch.dot(projected[i], rows[j]).item()
                if j != i and inner < 0:
                    projected[i] -= inner / rows[j].norm().pow(2) * rows[j]
        copy_back(projected.sum(0), trunk)
        bench.clear()

    return step


def flatten_and_weigh(bench: Bench) -> Callable[[], None]:
    """Weights from rows in host memory, then one more backward pass."""
    trunk, number = bench.trunk, len(bench.tasks)

    def step() -> None:
        losses, _ = bench.forward()
        rows = torch.zeros(number, sum(p.numel() for p in trunk))
        for row, loss in zip(rows, losses.values(), strict=True):
            copy_to(row, torch.autograd.grad(loss, trunk, retain_graph=True, allow_unused=True))
        weights = 1 / rows.to(bench.image.device).norm(dim=1)
        torch.stack([w * loss for w, loss in zip(weights, losses.values(), strict=True)]).sum().backward()
        bench.clear()

    return step


def copy_to(row: Tensor, gradients: list[Tensor | None]) -> None:
    sizes = [0 if g is None else g.numel() for g in gradients]
    for index, gradient in enumerate(gradients):
        if gradient is not None:
            row[sum(sizes[:index]):sum(sizes[:index + 1])] = gradient.reshape(-1).cpu()


def copy_back(vector: Tensor, trunk: list[nn.Parameter]) -> None:
    start = 0
    for p in trunk:
        p.grad = vector[start:start + p.numel()].view(p.shape).clone()
        start += p.numel()


def measure_weights(options: argparse.Namespace) -> list[dict[str, object]]:
    """Milliseconds from inner products to weights, ours and torchjd's, for random gradients: the least of all turns."""
    import torchjd.aggregation

    rows: list[dict[str, object]] = []
    print(f"{'tasks':>5} {'method':>12} {'ours/ms':>9} {'torchjd/ms':>11} {'apart':>9}")
    for number in options.tasks:
        gradients = torch.randn(number, 1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        gram, losses = gradients @ gradients.T, torch.ones(number, dtype=torch.float64)
        names = tuple(f"task{i}" for i in range(number))
        for method in (method for method in options.methods if method in TORCHJD):
            balancer = CATALOG.load(method).Config().build(standard_weights=dict.fromkeys(names, 1.0))
            theirs = getattr(torchjd.aggregation, f"{TORCHJD[method]}Weighting")(**_needed(TORCHJD[method], number))
            ways = (partial(balancer.solve, gram, losses, names), partial(theirs, gram))
            found = [way() for way in ways]
            turns = [[_seconds(way) for way in ways] for _ in range(options.turns)]
            ours, other = (1000 * min(turn[index] for turn in turns) for index in range(2))
            combined = [weights @ gradients for weights in found]
            apart = float((combined[0] - combined[1]).norm() / combined[1].norm())
            rows.append({"tasks": number, "method": method, "ours": ours, "torchjd": other, "apart": apart})
            print(f"{number:>5} {method:>12} {ours:>9.2f} {other:>11.2f} {apart:>9.1e}")
    return rows


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def milliseconds(bench: Bench, step: Callable[[], None]) -> float:
    synchronize(bench)
    start = time.perf_counter()
    step()
    synchronize(bench)
    return 1000 * (time.perf_counter() - start)


def synchronize(bench: Bench) -> None:
    if bench.image.is_cuda:
        torch.cuda.synchronize()


def peak(bench: Bench, step: Callable[[], None]) -> int:
    if not bench.image.is_cuda:
        with StorageWatch() as watch:
            step()
        return watch.peak
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="*", default=CATALOG.names())
    parser.add_argument("--tasks", type=int, nargs="*", default=[2, 3, 4, 5])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--head", default="fused", choices=("fused", "aspp", "fpn"))
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--size", type=int, nargs=2, default=(128, 160))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument("--weights", action="store_true", help="only weights from inner products, by us and torchjd")
    options = parser.parse_args()
    keep_freed_memory()
    about, rows = environment(), []
    if options.weights:
        rows = measure_weights(options)
        print(json.dumps({"benchmark": "balancers", "environment": about, **vars(options), "rows": rows}))
        return
    place = f"{torch.get_num_threads()} threads of {about['processor']}"
    place = place if options.device == "cpu" else str(about["accelerator"])
    print(f"{options.model}, heads {options.head} of width {options.width}, {options.size[0]}x{options.size[1]}, batch "
          f"{options.batch}, {options.precision}, {place}, torch {torch.__version__}")
    print(f"{'tasks':>5} {'method':>26} {'level':>15} {'ms':>9} {'times':>6} {'peak/MiB':>9}")
    for number in options.tasks:
        bench = build(options, number)
        working = []
        for subject in subjects(bench, [m for m in options.methods if m != "equal"], not options.no_rivals):
            try:
                working.append((subject, peak(bench, subject.step)))  # the first step: with buffers that then stay
            except Exception as error:  # a rival that cannot do this is a result
                bench.clear()
                reason = f"{type(error).__name__}: {error}".partition("\n")[0][:90]
                print(f"{number:>5} {subject.name:>26} {subject.level:>15} {reason}")
        turns = [[milliseconds(bench, subject.step) for subject, _ in working] for _ in range(options.turns)]
        for index, (subject, most) in enumerate(working):
            median = statistics.median(turn[index] for turn in turns)
            times = statistics.median(turn[index] / turn[0] for turn in turns)
            rows.append({"tasks": number, "method": subject.name, "level": subject.level, "milliseconds": median,
                         "times": times, "peak": most})
            print(f"{number:>5} {subject.name:>26} {subject.level:>15} {median:>9.1f} {times:>6.2f} "
                  f"{most / 2**20:>9.0f}")
    print(json.dumps({"benchmark": "balancers", "environment": about, **vars(options), "rows": rows}))


if __name__ == "__main__":
    main()
