"""Costs that a search predicts for a policy against those measured on its compact network.

    python benchmarks/search_costs.py [--models resnet18,mobilenetv2_100] [--policies 3] [--threads 1] [--json FILE]

Parameters, multiply-adds and activation memory must agree to the last number; latency is a sum over single operations
(scaled to one whole backbone) and is compared with the median of the whole network in the same process.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

from polyptych.backbones.timm import Timm
from polyptych.logbook import environment
from polyptych.profiling.memory import peak
from polyptych.profiling.operators import count
from polyptych.profiling.timing import latency
from polyptych.search import compile, extract
from polyptych.search.supermodel.costs import measure_costs

TASKS = ("semseg", "depth", "normals")


def compare(model: str, size: tuple[int, int], policies: int, seconds: float) -> list[dict]:
    backbone = Timm.Config(model=model).build()
    supermodel = compile(backbone, TASKS)
    table = measure_costs(supermodel, size, timed=True)
    space, random, image = supermodel.space, Random(0), torch.rand(1, 3, *size)
    chosen = {"all shared": space.all_shared(), "all own": space.all_own()}
    chosen |= {f"tree {i}": space.draw(random) for i in range(policies)}
    rows = []
    for name, policy in chosen.items():
        predicted, network = table.cost(supermodel, policy), extract(supermodel, policy).eval()

        def forward(network: torch.nn.Module = network) -> object:
            return network(image)

        multiply_adds = count(network, forward)[0].total
        with torch.inference_mode():
            memory = peak(forward, torch.device("cpu"))
            measured = latency(forward, torch.device("cpu"), 20, seconds).median
        rows.append({
            "model": model, "policy": name, "parameters": predicted.parameters,
            "multiply_adds": predicted.multiply_adds, "memory": predicted.memory,
            "exact": (predicted.parameters, predicted.multiply_adds, predicted.memory) == (
                sum(p.numel() for p in network.parameters()), multiply_adds, memory),
            "latency_predicted": predicted.latency, "latency_measured": measured})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet18,mobilenetv2_100,swin_tiny_patch4_window7_224")
    parser.add_argument("--size", type=int, nargs=2, default=(224, 224))
    parser.add_argument("--policies", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [row for model in options.models.split(",")
            for row in compare(model, tuple(options.size), options.policies, options.seconds)]
    shown = Table(title=f"predicted and measured, {options.threads} thread(s), {environment()['processor']}")
    for title in ("model", "policy", "params M", "GMAC", "memory MiB", "all exact", "latency ms", "measured", "ratio"):
        shown.add_column(title, justify="left" if title in ("model", "policy") else "right")
    for row in rows:
        shown.add_row(row["model"], row["policy"], f"{row['parameters'] / 1e6:.2f}",
                      f"{row['multiply_adds'] / 1e9:.2f}", f"{row['memory'] / 2**20:.1f}",
                      "yes" if row["exact"] else "NO",
                      f"{1e3 * row['latency_predicted']:.1f}", f"{1e3 * row['latency_measured']:.1f}",
                      f"{row['latency_predicted'] / row['latency_measured']:.2f}")
    Console().print(shown)
    for model in options.models.split(","):
        own = [row for row in rows if row["model"] == model]
        ranks = spearmanr([r["latency_predicted"] for r in own], [r["latency_measured"] for r in own]).statistic
        print(f"{model}: Spearman of predicted and measured latency {ranks:.2f} over {len(own)} policies")
    if options.json:
        options.json.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
