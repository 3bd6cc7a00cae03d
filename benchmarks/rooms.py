"""How many frames of ``rooms`` one core makes per second, with all seven labels.

    OMP_NUM_THREADS=1 python benchmarks/rooms.py

Prints a table and one line of JSON. The best of several passes over the same frames counts, because other processes
can only slow a pass down.
"""

from __future__ import annotations

import argparse
import json
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

from polyptych.datasets._rooms.labels import LABELS
from polyptych.datasets.rooms import Rooms


def frames_per_second(size: tuple[int, int], frames: int, passes: int) -> float:
    """Of whole samples (scene, image, labels), from the fastest of ``passes`` readings of each frame."""
    data = Rooms.Config(size=size).build(split="train", tasks=tuple(LABELS))
    best = [float("inf")] * frames
    for _ in range(passes):
        for index in range(frames):
            start = time.perf_counter()
            data.read(index)
            best[index] = min(best[index], time.perf_counter() - start)
    return frames / sum(best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", type=int, default=32, help="different scenes per resolution")
    parser.add_argument("--passes", type=int, default=3, help="readings of each scene; the fastest counts")
    options = parser.parse_args()
    results = {f"{h}x{w}": frames_per_second((h, w), options.frames, options.passes)
               for h, w in ((128, 160), (288, 384))}
    print(f"{'resolution':>12}  {'frames/s':>9}  {'ms/frame':>9}")
    for name, rate in results.items():
        print(f"{name:>12}  {rate:9.1f}  {1000 / rate:9.1f}")
    print(json.dumps({"benchmark": "rooms", "threads": 1, "frames": options.frames, "passes": options.passes,
                      "frames_per_second": {name: round(rate, 2) for name, rate in results.items()}}))


if __name__ == "__main__":
    main()
