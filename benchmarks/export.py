"""Time of a network under torch (eager) and exported under onnxruntime: float32, static and dynamic INT8.

    OMP_NUM_THREADS=2 python benchmarks/export.py
    python benchmarks/export.py nyuv2_mtan --model resnet18 --size 288 384 --turns 5

Untrained weights and random images: time does not depend on them. The forms take turns, so that a disturbance of the
machine meets all of them; "times" is the median of the ratios to eager within a turn, smaller is faster. Prints a table
and JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from polyptych.backbones.timm import Timm
from polyptych.export.comparison import compare
from polyptych.export.exporting import save
from polyptych.export.graph import Graph, capture
from polyptych.export.metadata import Description
from polyptych.export.quantization import quantize_file
from polyptych.export.runtime import OnnxModel
from polyptych.logbook import environment
from polyptych.recipes._catalog import load
from polyptych.types import LabelInfo

CLASSES = tuple(map(str, range(40)))


def subjects(recipe: str, model: str, size: tuple[int, int], folder: Path) -> tuple[torch.Tensor, dict[str, Callable]]:
    run = load(recipe)()
    if model:
        run = replace(run, backbone=Timm.Config(model=model))
    labels = {name: LabelInfo(classes=CLASSES) for name in run.tasks}
    torch.manual_seed(0)
    tasks = run.build_tasks(labels)
    network = run.build_network(tasks, pretrained=False).eval()
    description = Description(name=recipe, protocol="none", tasks=run.tasks, labels=labels, mean=(0.0,) * 3,
                              std=(1.0,) * 3, size=size, fixed=True)
    plain = save(capture(Graph(network, tuple(tasks), size)), description, folder / "float32.onnx", "onnx")
    compare(plain, network, 1e-3, size)
    image = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
    for method in ("static", "dynamic"):
        quantize_file(folder / "float32.onnx", folder / f"{method}.onnx", method, description, iter([image]), 1)
    eager = network.to(memory_format=torch.channels_last)
    forms = {"eager": lambda: eager(image), "onnxruntime": lambda: plain.raw(image)}
    for method in ("static", "dynamic"):
        small = OnnxModel.open(folder / f"{method}.onnx")
        forms[f"{method} INT8"] = lambda small=small: small.raw(image)
    return image, forms


def seconds(step: Callable) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        step()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=["rooms", "nyuv2"])
    parser.add_argument("--model", default="", help="of timm; empty keeps the recipe's backbone")
    parser.add_argument("--size", type=int, nargs=2, help="of the image; by default the recipe's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    print(f"batch 1, {options.threads} threads of {environment()['processor']}, torch {torch.__version__}")
    print(f"{'recipe':>12} {'size':>10} {'form':>14} {'ms':>8} {'times':>6}")
    for recipe in options.recipes:
        size = tuple(options.size or load(recipe)().size or (480, 640))
        with tempfile.TemporaryDirectory() as folder:
            _, forms = subjects(recipe, options.model, size, Path(folder))
            for step in forms.values():
                seconds(step)
            turns = [[seconds(step) for step in forms.values()] for _ in range(options.turns)]
        for number, form in enumerate(forms):
            median = statistics.median(turn[number] for turn in turns)
            times = statistics.median(turn[number] / turn[0] for turn in turns)
            rows.append({"recipe": recipe, "size": size, "form": form, "seconds": median, "times": times})
            print(f"{recipe:>12} {f'{size[0]}x{size[1]}':>10} {form:>14} {1000 * median:>8.1f} {times:>6.2f}")
    print(json.dumps({"benchmark": "export", "threads": options.threads, "turns": options.turns, "rows": rows}))


if __name__ == "__main__":
    main()
