"""The selective scan against the plain loop: time, distance to the floor, and memory of training.

    python benchmarks/selective_scan.py
    python benchmarks/selective_scan.py --plot docs/images/selective_scan.png
    python benchmarks/selective_scan.py --shapes 4096x8 1024x96 --turns 5
    python benchmarks/selective_scan.py --step            # MTMamba's training step beside InvPT's, on one backbone

A shape is positions x channels of a map; each has four paths and 16 states a channel, so a step of the recurrence moves
64 states for every channel. ``loop`` is the recurrence in its fewest operations, ``blocks`` what the library runs.
Loop and blocks take turns; the best of the turns is shown, since a disturbance only adds. Times are the processor's, of
one thread.

The floor. For every state and position a scan has four multiply-adds and an exponential; here these are exp(dt A), the
product before it, the input, the step, and the reading: five passes over the arrays of a block, which lie in the cache.
"floor" is the time that those passes take by themselves, each in one call on an array of a block's size, and "bytes"
what has to come from memory and go there at least: u, dt, B, C and y, once. The rest is calls: two a step. A backward
pass makes the states again and goes through twelve passes.

Memory is what a forward and a backward pass allocate beside their inputs, those inside the operator included
(:class:`polyptych.profiling.memory.StorageWatch`). Prints tables and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from polyptych.ops import _selective_scan_blocks as blocks
from polyptych.ops import selective_scan
from polyptych.ops.selective_scan import paths, selective_scan_over_map
from polyptych.profiling.memory import StorageWatch

STATES, PATHS, MIB = 16, 4, 2**20
STEPS = 8  # of the arrays with which the floor is measured: they fit the cache
SHAPES = ("1024x4", "1024x16", "1024x64", "1024x256", "4096x16", "4096x64", "1008x1536")


def inputs(positions: int, channels: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    a = -torch.arange(1.0, STATES + 1)[:, None].expand(PATHS, 1, STATES, channels).contiguous()
    return [normal(1, 1, positions, channels), 0.1 * torch.rand(PATHS, 1, 1, positions, channels, generator=random), a,
            normal(PATHS, 1, 1, positions, STATES), normal(PATHS, 1, 1, positions, STATES), normal(PATHS, 1, channels)]


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def floor(positions: int, channels: int) -> float:
    """Seconds of the five passes, without the calls that a step needs."""
    lanes = min(blocks.LANES, channels * STATES)
    x, y, z = (torch.rand(STEPS, lanes) for _ in range(3))
    weights, states = torch.rand(STEPS, 1, STATES), torch.rand(STEPS, STATES, lanes // STATES)
    passes = (lambda: torch.mul(x, y, out=z), lambda: torch.exp(x, out=z), lambda: torch.mul(x, y, out=z),
              lambda: z.addcmul_(x, y), lambda: torch.bmm(weights, states))
    once = sum(min(seconds(one) for _ in range(20)) for one in passes)
    return once * positions * PATHS * channels * STATES / (STEPS * lanes)


def step_by_step(u: Tensor, dt: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The recurrence of sequences (sequence, position, channel), whose states autograd stores."""
    state, read = torch.zeros_like(a), []
    for u_i, dt_i, b_i, c_i in zip(*(x.unbind(1) for x in (u, dt, b, c)), strict=True):
        state = (dt_i[:, None] * a).exp() * state + b_i[..., None] * (dt_i * u_i)[:, None]
        read.append((c_i[..., None] * state).sum(1))
    return torch.stack(read, dim=1)


def scan(tensors: list[Tensor], size: tuple[int, int], method: str) -> Tensor:
    """Our scan, or ``loop``: the recurrence in place of its plain form."""
    if method != "loop":
        return selective_scan_over_map(*tensors, size)
    with mock.patch.object(selective_scan, "_in_chunks", step_by_step):
        return selective_scan_over_map(*tensors, size, method="plain")


def training(tensors: list[Tensor], size: tuple[int, int], method: str) -> None:
    tensors = [x.requires_grad_() for x in tensors]
    scan(tensors, size, method).sum().backward()
    for x in tensors:
        x.grad = None


def row(shape: str, turns: int) -> dict:
    positions, channels = map(int, shape.split("x"))
    size = (1, positions) if positions % 32 else (positions // 32, 32)
    tensors = inputs(positions, channels)
    times: dict[str, list[float]] = {}
    with torch.no_grad():
        for _ in range(turns):
            for method in ("loop", "blocks"):
                times.setdefault(method, []).append(seconds(
                    lambda method=method: scan(tensors, size, method)))
    for _ in range(max(1, turns // 2)):
        for method in ("loop", "blocks"):
            times.setdefault(f"train {method}", []).append(seconds(
                lambda method=method: training(tensors, size, method)))
    best = {name: min(found) for name, found in times.items()}
    states = positions * PATHS * channels * STATES
    return {"shape": shape, "states": states, "lanes": states // positions, **best, "floor": floor(positions, channels),
            "bytes": 4 * positions * (2 * channels + PATHS * (channels + 2 * STATES))}


def peaks(positions: int, channels: int) -> dict:
    """Bytes that training allocates, by blocks and by autograd over the loop."""
    size, tensors = (positions // 32, 32), inputs(positions, channels)
    u, dt, a, b, c = tensors[0][0], *(x.flatten(1, 2) if x.ndim == 5 else x for x in tensors[1:5])
    order = paths(*size, u.device)[0]
    with StorageWatch() as watch:
        shape = blocks.shape_of(dt, a, True)
        y, kept = blocks.forward(u, dt, a, b, c, order, shape, True)
        assert kept is not None
        blocks.backward(torch.ones_like(y), u, dt, a, b, c, order, kept, shape)
    ours = watch.peak
    with StorageWatch() as watch:
        training(tensors, size, "loop")
    return {"positions": positions, "channels": channels, "states": positions * PATHS * channels * STATES,
            "blocks": ours, "loop": watch.peak}


def draw(memory: list[dict], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for method in ("loop", "blocks"):
        axes.plot([m["positions"] for m in memory], [m[method] / MIB for m in memory], marker="o", label={
            "loop": "autograd over the loop", "blocks": "blocks"}[method])
    axes.set(xscale="log", yscale="log", xlabel="positions", ylabel="MiB",
             title=f"Training a selective scan of {memory[0]['channels']} channels, four paths, 16 states")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def steps(turns: int, size: tuple[int, int], backbone: str) -> list[dict]:
    """Training steps of MTMamba's forms and of InvPT."""
    from network_step import subject
    from polyptych.recipes._catalog import load

    run = load("nyuv2_mti_net")()
    run = type(run)(**(vars(run) | {"backbone": type(run.backbone)(model=backbone)}))
    subjects = [subject(run, name, size, 2) for name in ("invpt", "mtmamba", "mtmamba:cross=feature:head=dense")]
    times: dict[str, list[float]] = {}
    for turn in range(turns + 1):
        for each in subjects:
            taken = seconds(each.step)
            if turn:  # the first allocates
                times.setdefault(each.name, []).append(taken)
    return [{"name": each.name, "parameters": each.parameters, "multiply_adds": each.multiply_adds,
             "seconds": min(times[each.name])} for each in subjects]


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=SHAPES, metavar="POSITIONSxCHANNELS")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="*", default=(512, 1024, 2048, 4096), help="of the memory plot")
    parser.add_argument("--channels", type=int, default=64, help="of the memory plot")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--step", action="store_true", help="training steps of networks instead")
    parser.add_argument("--size", type=int, nargs=2, default=(96, 128), help="of the images of --step")
    parser.add_argument("--backbone", default="hrnet_w18_small_v2", help="of --step")
    options = parser.parse_args()
    if options.step:
        found = steps(options.turns, tuple(options.size), options.backbone)
        for each in found:
            print(f"{each['name']:<36} {each['parameters']:>12,} {each['multiply_adds'] / 1e9:8.1f} G "
                  f"{each['seconds']:8.2f} s {each['seconds'] / found[0]['seconds']:6.2f} x")
        print(json.dumps({"steps": found}))
        return
    print(f"{'shape':>10} {'lanes':>7} | {'loop':>9} {'blocks':>9} {'times':>6} {'floor':>9} {'over':>5} | "
          f"{'training: loop':>14} {'blocks':>9} {'times':>6} | {'MiB to move':>11}")
    rows = []
    for shape in options.shapes:
        rows.append(found := row(shape, options.turns))
        ms = {name: 1e3 * value for name, value in found.items() if isinstance(value, float)}
        print(f"{shape:>10} {found['lanes']:>7} | {ms['loop']:>6.1f} ms {ms['blocks']:>6.1f} ms "
              f"{ms['loop'] / ms['blocks']:>6.1f} {ms['floor']:>6.1f} ms {ms['blocks'] / ms['floor']:>5.1f} | "
              f"{ms['train loop']:>11.1f} ms {ms['train blocks']:>6.1f} ms "
              f"{ms['train loop'] / ms['train blocks']:>6.1f} | {found['bytes'] / MIB:>11.1f}", flush=True)
    memory = [peaks(length, options.channels) for length in options.lengths]
    print(f"\n{'positions':>10} {'autograd, MiB':>14} {'blocks, MiB':>12} {'share':>6}")
    for m in memory:
        print(f"{m['positions']:>10} {m['loop'] / MIB:>14.1f} {m['blocks'] / MIB:>12.2f} "
              f"{m['blocks'] / m['loop']:>6.3f}")
    print(json.dumps({"rows": rows, "memory": memory}))
    if options.plot:
        draw(memory, options.plot)


if __name__ == "__main__":
    main()
