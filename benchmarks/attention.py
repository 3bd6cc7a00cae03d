"""Peak memory of DeMT's interaction block, beside the same block with its matrix of scores written out.

    python benchmarks/attention.py
    python benchmarks/attention.py --plot docs/images/attention_memory.png

One image, a forward and a backward pass through the interaction (attention over the tokens of all tasks, linear map,
LayerNorm) at growing sizes up to 1/4 of 448x576 with four tasks, 64,512 tokens; float32. ``global`` averages keys over
windows (the default of the decoder), ``flash`` averages nothing but stores no scores either, ``pixel`` is the published
code's, ``plain`` is softmax(Q K^T) V. What a pass allocates beside its inputs is counted exactly
(:func:`polyptych.profiling.memory.peak`). Where ``plain`` would take more than ``--memory`` it is not run: its row says
what its scores and their gradient alone would take, and is marked as computed.

Prints a table and one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyptych.decoders._task_attention import Attention, reduced
from polyptych.profiling.memory import peak

SIZES = ((14, 18), (28, 36), (56, 72), (112, 144))
MIB = 2**20


class Plain(Attention):
    """The same attention with all scores in memory."""

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        (wq, wk, wv), (bq, bk, bv) = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (self._split(F.linear(x, w, b)) for x, w, b in ((query, wq, bq), (keys, wk, bk), (keys, wv, bv)))
        scores = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.out_proj((scores @ v).transpose(1, 2).flatten(2))


def block(form: str, attention: Attention, finish: nn.Module, tokens: Tensor, reduction: int) -> Tensor:
    sequence = tokens.permute(0, 1, 3, 4, 2).flatten(1, 3)
    if form == "pixel":
        return finish(attention.alone(sequence))
    return finish(attention(sequence, reduced(tokens, reduction) if form == "global" else sequence))


def measure(form: str, size: tuple[int, int], options: argparse.Namespace) -> dict:
    torch.manual_seed(0)
    attention = (Plain if form == "plain" else Attention)(options.width, options.heads)
    finish = nn.Sequential(nn.Linear(options.width, options.width), nn.LayerNorm(options.width))
    tokens = torch.randn(1, options.tasks, options.width, *size, requires_grad=True)
    count = options.tasks * size[0] * size[1]
    row = {"form": form, "size": size, "tokens": count, "computed": False, "seconds": None}
    scores = 4 * options.heads * count**2
    if form == "plain" and 3 * scores > options.memory * 2**30:  # scores, softmax, gradient
        return row | {"peak": 2 * scores, "computed": True}

    def step() -> None:
        block(form, attention, finish, tokens, options.reduction).sum().backward()

    start = time.perf_counter()
    step()
    return row | {"seconds": round(time.perf_counter() - start, 3), "peak": peak(step, torch.device("cpu"))}


def draw(rows: list[dict], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for form in dict.fromkeys(row["form"] for row in rows):
        own = [row for row in rows if row["form"] == form]
        axes.plot([r["tokens"] for r in own], [r["peak"] / MIB for r in own], marker="o", label=form)
        computed = [r for r in own if r["computed"]]
        axes.plot([r["tokens"] for r in computed], [r["peak"] / MIB for r in computed], "o", mfc="white", color="gray")
    axes.set(xscale="log", yscale="log", xlabel="tokens of all tasks", ylabel="peak of activations, MiB",
             title="DeMT's interaction, forward and backward (hollow: computed)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--reduction", type=int, default=8)
    parser.add_argument("--memory", type=float, default=6.0, help="GiB above which plain attention is not run")
    parser.add_argument("--forms", nargs="+", default=["global", "pixel", "flash", "plain"])
    parser.add_argument("--largest", type=int, default=len(SIZES), help="how many of the sizes are measured")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    rows = [measure(form, size, options) for size in SIZES[:options.largest] for form in options.forms]
    print(f"{'size':>10} {'tokens':>7} {'form':>7} {'peak MiB':>10} {'bytes/token':>12} {'seconds':>8}")
    for row in rows:
        mark, seconds = "*" if row["computed"] else " ", "" if row["seconds"] is None else f"{row['seconds']:.3f}"
        print(f"{row['size'][0]:>5}x{row['size'][1]:<4} {row['tokens']:>7} {row['form']:>7} {row['peak'] / MIB:>9.1f}"
              f"{mark} {row['peak'] / row['tokens']:>12.0f} {seconds:>8}")
    print("* computed, not measured: the scores and their gradient alone")
    print(json.dumps({"options": {k: str(v) for k, v in vars(options).items()}, "rows": rows}))
    if options.plot:
        draw(rows, options.plot)


if __name__ == "__main__":
    main()
