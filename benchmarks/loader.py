"""How many training images per second the data pipeline delivers on NYUv2, with and without the decoded copy.

    python benchmarks/loader.py [ROOT] [--images 64] [--workers 0 1 2] [--out loader.json]

Four labels per image (semseg, depth, normals, boundaries), windows of MTAN's zooms, mirror, 288x384. Prints a table,
then JSON. The floor is the time of one read and one move in a single process: the loader cannot be faster than that
times the number of cores.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from polyptych.data.cache import cached
from polyptych.data.loading import TrainingBatches, check
from polyptych.data.transforms import Augment, augment, collate
from polyptych.datasets._base import Dataset
from polyptych.datasets.nyuv2 import NYUv2
from polyptych.tasks._base import CATALOG, Task
from polyptych.types import Sample

TASKS = ("semseg", "depth", "normals", "boundaries")
SIZE = (288, 384)
BATCH = 8


class FirstImages(Dataset):
    """The first images of a dataset, so that making a copy of all 717 need not be waited for."""

    def __init__(self, dataset: Dataset, count: int):
        self.labels, self.protocol = dataset.labels, dataset.protocol
        super().__init__(dataset.config, split=dataset.split, tasks=dataset.tasks)
        self._dataset, self._count = dataset, min(count, len(dataset))

    def __len__(self) -> int:
        return self._count

    def read(self, index: int) -> Sample:
        return self._dataset.read(index)


def images_per_second(dataset: Dataset, tasks: dict[str, Task], augment: Augment, workers: int,
                      images: int) -> float:
    batches = iter(TrainingBatches(dataset, tasks, augment, SIZE, BATCH, seed=0, workers=workers))
    for _ in islice(batches, max(1, 2 * workers)):  # workers start and fill their queues
        pass
    count = max(1, images // BATCH)
    start = time.perf_counter()
    for _ in islice(batches, count):
        pass
    return count * BATCH / (time.perf_counter() - start)


def milliseconds(function: Callable[[int], Any], count: int = 16) -> float:
    function(0)
    start = time.perf_counter()
    for index in range(count):
        function(index)
    return (time.perf_counter() - start) / count * 1e3


def stages(dataset: Dataset, copy: Dataset, tasks: dict[str, Task],
           augmentations: dict[str, Augment]) -> dict[str, float]:
    """Milliseconds per image of every step, in one process."""
    sample, generator = dataset.read(0), torch.Generator().manual_seed(0)
    moved = augment(sample, tasks, SIZE, generator, Augment())
    found = {
        "read files": milliseconds(lambda index: dataset.read(index % len(dataset))),
        "read copy": milliseconds(lambda index: copy.read(index % len(copy))),
        "check": milliseconds(lambda _: check(sample, tasks)),
        "collate": milliseconds(lambda _: collate([moved] * BATCH, tasks)) / BATCH,
    }
    for name, how in augmentations.items():
        found[f"augment ({name})"] = milliseconds(lambda _, how=how: augment(sample, tasks, SIZE, generator, how))
    return found


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, nargs="?", default=Path(__file__).parents[2] / "shared/data/nyuv2")
    parser.add_argument("--images", type=int, default=64, help="images to time, and images in the copy")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # as in a worker process

    dataset = FirstImages(NYUv2.Config(root=options.root).build(split="train", tasks=TASKS), options.images)
    tasks = {name: CATALOG.load(name).Config().build(labels=dataset.labels[name]) for name in TASKS}
    how = Augment(scales=(1.0, 1.2, 1.5))
    colorful = replace(how, brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05)
    augmentations = {"window, mirror": how, "and colors": colorful}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        copy = cached(dataset, Path(folder), tasks)
        made = time.perf_counter() - start
        size = sum(file.stat().st_size for file in copy.folder.iterdir())
        rates = [{"workers": workers, "files": images_per_second(dataset, tasks, how, workers, options.images),
                  "copy": images_per_second(copy, tasks, how, workers, options.images)} for workers in options.workers]
        result = {
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                        "torch": torch.__version__},
            "protocol": dataset.protocol, "size": SIZE, "batch": BATCH, "tasks": TASKS, "images": len(dataset),
            "images_per_second": rates, "milliseconds_per_image": stages(dataset, copy, tasks, augmentations),
            "copy": {"seconds_to_make": made, "megabytes_per_image": size / len(dataset) / 1e6},
        }
    show(result)
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def show(result: dict[str, Any]) -> None:
    table = Table("workers", "from files, images/s", "from the copy, images/s", title=result["protocol"])
    for row in result["images_per_second"]:
        table.add_row(str(row["workers"]), f"{row['files']:.1f}", f"{row['copy']:.1f}")
    steps = Table("step", "ms per image")
    for name, value in result["milliseconds_per_image"].items():
        steps.add_row(name, f"{value:.2f}")
    console = Console(stderr=True)
    console.print(table, steps)


if __name__ == "__main__":
    main()
