"""What a frozen backbone costs in accuracy and saves in minutes, on real images.

    python benchmarks/frozen.py --root DIR --out frozen

Trains ``nyuv2_laptop`` (DIR holds NYUv2, as `polyptych data info nyuv2` says) in three ways: with everything learning,
with a frozen backbone, and with a frozen backbone whose features are stored, once for each seed. Runs of one seed
follow one another, so that a busy machine slows all ways alike. Runs that are there already are not trained again.
Prints a table of the test results: means over the seeds, with the smallest and the largest value; the processor seconds
of training; and the minutes of the fastest run with its start, both evaluations and the report. The first run on stored
features also computes them, before the clock of its training starts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

from polyptych.evaluation_record import Evaluation

FROZEN = ["--backbone.freeze", "all"]


def train(root: Path, out: Path, seed: int, options: list[str]) -> None:
    """One run, and how long it took with all that belongs to it: start, tests, report."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "polyptych", "train", "nyuv2_laptop", "--dataset.root", str(root), "--out",
                    str(out), "--seed", str(seed), *options], check=True)
    (out / "minutes.json").write_text(json.dumps((time.perf_counter() - begin) / 60))


def training_seconds(run: Path) -> float:
    """Processor seconds that the steps of a run took."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return max(line["processor_seconds"] for line in lines if "processor_seconds" in line)


def spread(values: list[float]) -> str:
    return f"{mean(values):.4g} ({min(values):.4g} to {max(values):.4g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs, the samples and the features")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--views", type=int, default=4, help="stored augmented views of an image")
    arguments = parser.parse_args()
    cache = ["--loading.cache", str(arguments.out / "cache")]
    ways = {"everything learns": cache, "frozen": [*cache, *FROZEN],
            "frozen, stored features": [*cache, *FROZEN, "--loading.feature-views", str(arguments.views)]}
    found: dict[str, list[Evaluation]] = {way: [] for way in ways}
    minutes: dict[str, list[float]] = {way: [] for way in ways}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for seed in arguments.seeds:
        for way, options in ways.items():
            run = arguments.out / f"{way.replace(', ', '-').replace(' ', '-')}-{seed}"
            if not (run / "minutes.json").exists():
                train(arguments.root, run, seed, options)
            found[way].append(Evaluation.of_run(run, "test"))
            seconds[way].append(training_seconds(run))
            minutes[way].append(json.loads((run / "minutes.json").read_text()))
    some = found["frozen"][0]
    print(f"protocol {some.protocol}, {some.images} test images, seeds {arguments.seeds}, {arguments.views} views")
    print("| way | " + " | ".join(f"{task}, {result.headline}" for task, result in some.tasks.items())
          + " | mean skill | training, processor s | minutes of the fastest run |")
    print("|---|" + "---:|" * (len(some.tasks) + 3))
    for way, runs in found.items():
        cells = [spread([run.tasks[task].headline_value for run in runs]) for task in some.tasks]
        cells += [spread([run.skill for run in runs]), spread(seconds[way]), f"{min(minutes[way]):.1f}"]
        print(f"| {way} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
