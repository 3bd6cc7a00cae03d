"""Time and peak memory of cross-task affinity: the paper's formula, its streamed form, and the linear form.

    python benchmarks/affinity.py --threads 2
    python benchmarks/affinity.py --device cuda --dtype bfloat16

One forward and one backward pass on one sample, with one kernel per task; gradients of all four inputs. A method that
would take more than ``--memory`` or ``--operations`` at a size is left out there. Memory is what a pass allocates
beside its inputs, at its peak (:func:`polyptych.profiling.memory.peak`): on a CPU every storage from the operator that
makes it until it is freed, without workspaces inside of operators; on CUDA by the allocator. That pass is also the
warm-up of the timed ones, of which the fastest counts. The floor is the time that the multiply-adds of the linear form
would take at the rate of its own largest matrix product, measured in the same run.

Prints a table and one line of JSON; ``--plot FILE`` draws the memory. ``--calibrate`` measures, instead, the constant
of the cost model behind ``method="auto"``.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from polyptych.host_memory import keep_freed_memory
from polyptych.ops.affinity import cross_task_affinity, operations
from polyptych.profiling.memory import peak

METHODS = ("materialized", "streamed", "linear")
GIB = 2**30


def inputs(h: int, w: int, *, tasks: int, channels: int, k: int, shared: bool, device: torch.device, dtype: torch.dtype
           ) -> list[Tensor]:
    kernels = () if shared else (tasks,)
    made = [F.normalize(torch.randn(1, tasks, channels, h, w), dim=2), torch.randn(1, tasks, channels, h, w),
            torch.randn(*kernels, h * w, tasks, k, k), torch.randn(*kernels, h * w)]
    return [x.to(device, dtype).requires_grad_() for x in made]


def passes(x: list[Tensor], method: str) -> tuple[Callable[[], Tensor], Callable[[Tensor], object]]:
    """A forward pass, and the backward pass of its result."""
    downstream = torch.randn_like(x[1])
    return (lambda: cross_task_affinity(*x, method=method)), (lambda y: torch.autograd.grad(y, x, downstream))


def seconds(x: list[Tensor], method: str, repeats: int) -> tuple[float, float]:
    """Of the forward pass, and of both; the fastest of ``repeats``."""
    forward, backward = passes(x, method)
    best = [float("inf")] * 2
    for _ in range(repeats):
        start = now(x[0].device)
        y = forward()
        middle = now(x[0].device)
        backward(y)
        best = [min(best[0], middle - start), min(best[1], now(x[0].device) - start)]
    return best[0], best[1]


def now(device: torch.device) -> float:
    """Seconds. With a single thread those that the processor spent on it, so that other programs do not count."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def rate(x: list[Tensor]) -> float:
    """Multiply-adds per second of the product of all values with all features, or of a convolution of all features to
    all values, whichever is the faster."""
    device = x[0].device
    values, features = (a.detach().flatten(1, 2).to(memory_format=torch.channels_last) for a in (x[1], x[0]))
    weight = torch.randn(values.shape[1], features.shape[1], 3, 3, device=device, dtype=x[0].dtype)
    weight = weight.to(memory_format=torch.channels_last)
    rows, columns = values.flatten(2)[0], features.flatten(2)[0]
    amount, rates = rows.numel() * len(columns), []
    for times, step in ((1, lambda: rows @ columns.T), (9, lambda: F.conv2d(features, weight, padding=1))):
        for _ in range(5):
            start = now(device)
            step()
            rates.append(times * amount / (now(device) - start))
    return max(rates)


def measure(options: argparse.Namespace) -> list[dict[str, float | str]]:
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    rows: list[dict[str, float | str]] = []
    for size in options.sizes:
        h, w = map(int, size.split("x"))
        n, tasks = h * w, options.tasks
        x = inputs(h, w, tasks=tasks, channels=options.channels, k=options.k, shared=options.shared, device=device,
                   dtype=dtype)
        cost = operations(n, sources=tasks, targets=tasks, channels=options.channels, value_channels=options.channels,
                          k=options.k)
        floor = 3 * cost["linear"] / rate(x)
        for method in METHODS:
            matrices = (3 * tasks + 2) * n**2 * x[0].element_size() if method == "materialized" else 0
            work = cost.get(method, cost["streamed"])
            if matrices > options.memory * GIB or work > options.operations * 1e12:
                continue
            forward, backward = passes(x, method)
            memory = peak(lambda forward=forward, backward=backward: backward(forward()), device)
            repeats = 1 if method == "materialized" else options.repeats
            first, both = seconds(x, method, repeats)
            rows.append({"size": size, "positions": n, "method": method, "forward": first, "both": both,
                         "memory": memory, **({"floor": floor} if method == "linear" else {})})
            print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, float | str]) -> str:
    share = f"{row['floor']:9.3f}" if "floor" in row else ""
    return (f"{row['size']:>9} {row['positions']:>7} {row['method']:>13} {row['forward']:10.3f} {row['both']:13.3f} "
            f"{row['memory'] / GIB:10.3f} {share}")


def calibrate() -> None:
    """What moving one affinity through one neighborhood costs, in multiply-adds of the linear form."""
    for h, w, tasks, channels, shared in ((18, 24, 3, 128, False), (36, 48, 3, 128, False), (36, 48, 3, 128, True),
                                          (36, 48, 1, 128, False), (36, 48, 5, 64, False)):
        x = inputs(h, w, tasks=tasks, channels=channels, k=3, shared=shared, device=torch.device("cpu"),
                   dtype=torch.float32)
        linear, streamed = (seconds(x, method, 4)[1] for method in ("linear", "streamed"))
        n, window = h * w, 9 * tasks
        products = 2 * n * window * channels**2 * tasks
        moved = (streamed / linear * products - 2 * n**2 * tasks * channels) / (n**2 * window)
        print(f"{h}x{w}, {tasks} tasks, {channels} channels, {'one kernel' if shared else 'a kernel per task'}: "
              f"{moved:.0f} multiply-adds per neighbor")


def plot(rows: list[dict[str, float | str]], path: Path) -> None:
    import matplotlib
    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    positions = sorted({float(row["positions"]) for row in rows})
    ends = torch.tensor([positions[0], positions[-1]], dtype=torch.float64)
    axes.loglog(ends, 4 * ends**2 / GIB, color="0.6", linestyle="--", linewidth=1.2,
                label="one affinity matrix in float32")
    for method, color, marker in zip(METHODS, ("#c44e52", "#dd8452", "#2a6f97"), "s^o", strict=True):
        mine = [(row["positions"], row["memory"] / GIB) for row in rows if row["method"] == method]
        axes.loglog(*zip(*mine, strict=True), color=color, marker=marker, markersize=6, label=method)
    sizes = {row["positions"]: row["size"] for row in rows}
    axes.set_xticks(list(sizes), [f"{size.replace('x', ' x ')}\n{n:,}" for n, size in sizes.items()], fontsize=8)
    axes.minorticks_off()
    axes.set_ylim(top=150)
    axes.set_yticks([2.0**e for e in range(-10, 7, 4)],
                    ["1 MiB", "16 MiB", "256 MiB", "4 GiB", "64 GiB"])
    axes.set_xlabel("size of the feature map, number of positions")
    axes.set_ylabel("peak memory of a training step")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16", "float64"))
    parser.add_argument("--sizes", nargs="+", default=["18x24", "36x48", "72x96", "144x192", "256x512"])
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--channels", type=int, default=128, help="of features and of values")
    parser.add_argument("--k", type=int, default=3, help="size of the kernel")
    parser.add_argument("--shared", action="store_true", help="one kernel for all tasks")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="timed passes (of `materialized`, one)")
    parser.add_argument("--memory", type=float, default=6, help="GiB that `materialized` may take")
    parser.add_argument("--operations", type=float, default=1, help="10^12 multiply-adds a forward pass may take")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--calibrate", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    if options.calibrate:
        return calibrate()
    name = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else "CPU"
    print(f"{name}, {options.dtype}, {options.threads} threads, torch {torch.__version__}; {options.tasks} tasks, "
          f"{options.channels} channels, k = {options.k}, {'one kernel' if options.shared else 'a kernel per task'}")
    print(f"{'size':>9} {'N':>7} {'method':>13} {'forward/s':>10} {'fwd+bwd/s':>13} {'peak/GiB':>10} {'floor/s':>9}")
    rows = measure(options)
    print(json.dumps({"benchmark": "affinity", "device": name, "threads": options.threads, "dtype": options.dtype,
                      "tasks": options.tasks, "channels": options.channels, "k": options.k, "shared": options.shared,
                      "rows": rows}))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
