"""Example pictures of a run: test images (or else validation images) with ground truth and predictions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int
from PIL import Image

from polyptych.datasets._base import Dataset, EmptySplit
from polyptych.errors import InputError
from polyptych.prediction.predictor import load
from polyptych.record import write_json
from polyptych.reports.page import AREAS
from polyptych.reports.panels import Picture, panel
from polyptych.run import Run, read_run
from polyptych.types import Sample

LOOKED_AT = 8
"""Number of images from which one is shown: the first with labels of every task, else the one with the most."""


@dataclass(frozen=True)
class ExampleImage:
    """One test image, the painted labels of the tasks that have any, and the pixels of each class in them."""

    id: str
    image: Picture
    truth: dict[str, Picture]
    areas: dict[str, Int[np.ndarray, " k"] | None]


def example_images(run: Run, number: int) -> Iterator[ExampleImage]:
    """At most ``number`` test images, spread evenly over the split; images with labels are preferred. Without a test
    split they come from ``val``, and without either there are none.

    Raises:
        InputError: an image cannot be read, and the run stops at faulty images (``--loading.on-fault stop``).
    """
    dataset = _unseen(run)
    if dataset is None:
        return
    tasks = run.build_tasks(dataset.labels)
    number = min(number, len(dataset))
    for position in range(number):
        stretch = range(position * len(dataset) // number, (position + 1) * len(dataset) // number)
        sample = _best_labeled(dataset, stretch, run)
        if sample is not None:
            image = sample.image.permute(1, 2, 0).numpy()
            yield ExampleImage(sample.info.id, image, {
                name: tasks[name].paint_target(target, sample.valid[name], image)
                for name, target in sample.target.items()},
                {name: tasks[name].areas(target, sample.valid[name]) for name, target in sample.target.items()})


def _unseen(run: Run) -> Dataset | None:
    """Images that the run was not trained on, if the data has any."""
    for split in ("test", "val"):
        try:
            return run.build_dataset(split)
        except EmptySplit:
            continue
    return None


def _best_labeled(dataset: Dataset, stretch: range, run: Run) -> Sample | None:
    best, most = None, -1
    for index in stretch[::max(1, len(stretch) // LOOKED_AT)][:LOOKED_AT]:
        try:
            sample = dataset.read(index)
        except InputError:
            if run.loading.on_fault == "stop":
                raise
            continue
        labeled = sum(bool(valid.any()) for valid in sample.valid.values())
        if labeled > most:
            best, most = sample, labeled
        if labeled == len(dataset.tasks):
            break
    return best


def write_examples(folder: Path) -> list[Path]:
    """Write ``panels/000.png`` ... for a trained run; returns their paths. Also write how many of their pixels each
    class covers (:data:`polyptych.reports.page.AREAS`)."""
    run, _ = read_run(folder)
    predictor = load(folder, device="cpu")
    (folder / "panels").mkdir(exist_ok=True)
    paths, areas = [], dict[str, Counter[str]]()
    for position, example in enumerate(example_images(run, run.monitoring.examples)):
        scene = predictor.predict(example.image)
        shown = panel(example.image, list(predictor.tasks), example.truth, scene.painted(), caption=example.id)
        paths.append(folder / "panels" / f"{position:03}.png")
        Image.fromarray(shown).save(paths[-1])
        for task in scene.tasks:
            for pixels in (example.areas.get(task), scene.areas(task)):
                if pixels is not None:
                    named = dict(zip(scene.classes(task), map(int, pixels), strict=True))
                    areas.setdefault(task, Counter()).update(named)
    write_json(folder / AREAS, {task: {name: pixels for name, pixels in found.most_common() if pixels}
                                for task, found in areas.items()})
    return paths
