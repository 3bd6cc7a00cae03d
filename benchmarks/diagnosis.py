"""What looks at the tasks cost while a run trains: python benchmarks/diagnosis.py [RECIPE] [--share 0.05] [--steps N]

Trains a few steps of a recipe and looks as often as ``--monitoring.diagnose SHARE`` would, then prints the measured
share of the time. Claim (docs/diagnose.md): it is at most the share that was asked for.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from polyptych.recipes._catalog import load
from polyptych.training import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="rooms")
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=10, help="steps and looks to time")
    options = parser.parse_args()
    run = load(options.recipe)()
    run = replace(run, monitoring=replace(run.monitoring, diagnose=options.share))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(run, Path(folder) / "run", resume=False)
        every, batches = trainer._look_every(), iter(trainer.batches)
        steps, looks = [], []
        for number in range(options.steps + 2):  # the first two warm up
            batch, start = [next(batches) for _ in range(run.accumulate)], time.perf_counter()
            _, weights = trainer.step(batch)
            middle = time.perf_counter()
            trainer._look(batch[0], weights)
            if number > 1:
                steps.append(middle - start)
                looks.append(time.perf_counter() - middle)
        trainer.held.close()
    step, look = statistics.median(steps), statistics.median(looks)
    print(f"{options.recipe}: a step {step:.3f} s, a look {look:.3f} s ({look / step:.1f} steps), every {every} steps: "
          f"{100 * look / (look + every * step):.1f} % of the time, asked for {100 * options.share:g} %")


if __name__ == "__main__":
    main()
