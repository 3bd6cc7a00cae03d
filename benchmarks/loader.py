"""How many training images per second the data pipeline delivers on NYUv2: from files, from a copy, prepared.

    python benchmarks/loader.py [ROOT ...] [--images 64] [--workers 0 1 2] [--out loader.json]

ROOT is NYUv2 in any layout; without one, the real frames beside the repository, or else made-up ones of the same size
in the official layout. The copy is what --loading.cache makes (decoded, native size), prepared is what
`polyptych data prepare nyuv2 --size 288 384` makes. All labels of the layout (semseg, depth, normals, boundaries),
windows of MTAN's zooms, mirror, 288x384. Prints tables, then JSON. The floor is the time of one read and one move in a
single process: the loader cannot be faster than that times the number of cores.
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
from polyptych.data.preparation.conversion import Resized
from polyptych.data.transforms import Augment, augment, collate
from polyptych.datasets._base import Dataset
from polyptych.datasets._nyuv2.layouts.official import OfficialLayout
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


def stages(versions: dict[str, Dataset], tasks: dict[str, Task]) -> dict[str, dict[str, float]]:
    """Milliseconds per image of every step for every version of the data, in one process."""
    how = Augment(scales=(1.0, 1.2, 1.5))
    augmentations = {"window, mirror": how,
                     "and colors": replace(how, brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05)}
    found: dict[str, dict[str, float]] = {}
    for version, dataset in versions.items():
        sample, generator = dataset.read(0), torch.Generator().manual_seed(0)
        moved = augment(sample, tasks, SIZE, generator, Augment())
        steps: dict[str, Callable[[int], Any]] = {
            "read": lambda index, dataset=dataset: dataset.read(index % len(dataset)),  # type: ignore[misc]
            "check": lambda _, sample=sample: check(sample, tasks)}  # type: ignore[misc]
        for name, augmentation in augmentations.items():
            steps[f"augment ({name})"] = (  # type: ignore[assignment]
                lambda _, s=sample, g=generator, a=augmentation: augment(s, tasks, SIZE, g, a))
        found[version] = {name: milliseconds(step) for name, step in steps.items()}
        found[version]["collate"] = milliseconds(lambda _, moved=moved: collate([moved] * BATCH, tasks)) / BATCH
    return found


def measure(root: Path, images: int, workers: Iterable[int]) -> dict[str, Any]:
    """All numbers of one root."""
    config = NYUv2.Config(root=root, classes=13 if (root / "train/image").is_dir() else 40)
    offered = tuple(task for task in TASKS if task in config.build(split="train", tasks=()).labels)
    dataset = FirstImages(config.build(split="train", tasks=offered), images)
    tasks = {name: CATALOG.load(name).Config().build(labels=dataset.labels[name]) for name in offered}
    how = Augment(scales=(1.0, 1.2, 1.5))
    with tempfile.TemporaryDirectory() as folder:
        versions: dict[str, Dataset] = {"files": dataset}
        made = {}
        for version, source in (("copy", dataset), ("prepared", Resized(dataset, SIZE))):
            start = time.perf_counter()
            copy = cached(source, Path(folder), tasks)
            size = sum(file.stat().st_size for file in copy.folder.iterdir())
            made[version] = {"seconds": time.perf_counter() - start, "megabytes_per_image": size / len(dataset) / 1e6}
            versions[version] = copy
        rates = [{"workers": count, **{version: images_per_second(data, tasks, how, count, images)
                                       for version, data in versions.items()}} for count in workers]
        return {"root": root.name, "protocol": dataset.protocol, "tasks": offered, "images": len(dataset),
                "images_per_second": rates, "milliseconds_per_image": stages(versions, tasks), "made": made}


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", type=Path, nargs="*")
    parser.add_argument("--images", type=int, default=64, help="images to time, and images in the copies")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # as in a worker process
    real = Path(__file__).parents[2] / "shared/data/nyuv2"
    with tempfile.TemporaryDirectory() as made_up:
        roots = options.roots or [real]
        if not options.roots and not real.is_dir():
            roots = [Path(made_up)]
            OfficialLayout.write_fixture(roots[0], (480, 640))
        result = {
            "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count(),
                        "torch": torch.__version__},
            "size": SIZE, "batch": BATCH,
            "roots": [measure(root, options.images, options.workers) for root in roots]}
    for one in result["roots"]:  # type: ignore[union-attr]
        show(one)  # type: ignore[arg-type]
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


def show(result: dict[str, Any]) -> None:
    versions = list(result["milliseconds_per_image"])
    table = Table("workers", *(f"{version}, images/s" for version in versions), "prepared / files",
                  title=f"{result['protocol']}: {', '.join(result['tasks'])}")
    for row in result["images_per_second"]:
        table.add_row(str(row["workers"]), *(f"{row[version]:.1f}" for version in versions),
                      f"{row['prepared'] / row['files']:.1f}x")
    steps = Table("step", *(f"{version}, ms per image" for version in versions))
    for name in result["milliseconds_per_image"]["files"]:
        steps.add_row(name, *(f"{result['milliseconds_per_image'][version][name]:.2f}" for version in versions))
    console = Console(stderr=True)
    console.print(table, steps)


if __name__ == "__main__":
    main()
