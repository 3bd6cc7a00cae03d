"""A sheet of samples with labels overlaid, which shows at a glance whether the data was read correctly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from polyptych.data.preparation.inspection import Inspection, value_doubts
from polyptych.datasets._base import Dataset
from polyptych.errors import InputError
from polyptych.record import writing
from polyptych.reports.panels import Picture, banner, cell_size, contact_sheet, legend, shelves, strip
from polyptych.tasks._base import Task
from polyptych.types import Sample

OPACITY = 0.6
WIDTH = 1200  # pixels; a sheet that is much wider than long, or the other way round, is hard to look at
NAME = "data/samples.png"
"""Path of the sheet in the folder of a run."""

_LOOKED_AT = 12
_SHOWN = 4


def label_sheet(samples: Sequence[tuple[str, Sample]], tasks: Mapping[str, Task]) -> Picture:
    """A row for each sample, and the colors of all classes that occur.

    Args:
        samples: the split that each belongs to, and the sample.
    """
    rows = shelves([strip(_image(sample), {_titled(sample, name, task): _painted(sample, name, task)
                                           for name, task in tasks.items()}, caption=f"{split}: {sample.info.id}")
                    for split, sample in samples], WIDTH)
    for name, task in tasks.items():
        shown = task.legend().occurring(_areas(samples, name, task))
        if shown.entries and not shown.continuous:
            colors = legend([words for words, _ in shown.entries], [color for _, color in shown.entries],
                            max(480, rows[0].shape[1]))
            rows += [banner(name, colors), colors]
    return contact_sheet(rows)


def show_data(dataset: Dataset, tasks: Mapping[str, Task], folder: Path) -> list[str]:
    """Inspect a few training samples before training: write :data:`NAME`, and return a summary line and one more line
    for everything that looks wrong. Unreadable samples are left for the loader to report."""
    count = min(_LOOKED_AT, len(dataset))
    inspection = Inspection({name: task.config.name for name, task in tasks.items()}, dataset.labels)
    samples: list[tuple[str, Sample]] = []
    for place in range(count):
        try:
            sample = dataset.read(round(place * (len(dataset) - 1) / max(1, count - 1)))
            inspection.add(sample)
        except InputError:
            continue
        samples.append((dataset.split, sample))
    if not samples:
        return []
    shown = sorted(samples, key=lambda pair: -len(pair[1].target))[:_SHOWN]
    with writing(folder / NAME):
        (folder / NAME).parent.mkdir(exist_ok=True)
        Image.fromarray(label_sheet(shown, tasks)).save(folder / NAME)
    return [f"data: {inspection.in_words()} ({len(samples)} of {len(dataset)} training images looked at; some are "
            f"shown in {folder / NAME})", *(f"data: {doubt}" for doubt in value_doubts([inspection]))]


def _image(sample: Sample) -> Picture:
    return np.ascontiguousarray(sample.image.permute(1, 2, 0).numpy())


def _titled(sample: Sample, name: str, task: Task) -> str:
    """The name of a task; with the range of a label that has a unit, because a wrong unit looks like a right one."""
    if not task.labels.unit or name not in sample.target or not bool(sample.valid[name].any()):
        return name
    values = sample.target[name][..., sample.valid[name]]
    return f"{name}, {float(values.min()):.3g} to {float(values.max()):.3g} {task.labels.unit}"


def _painted(sample: Sample, name: str, task: Task) -> Picture | None:
    """A label over its image, which is dark where pixels have none."""
    if name not in sample.target:
        return None
    image = _image(sample)
    target, valid = sample.target[name], sample.valid[name]
    painted = task.paint_target(target, valid, image)
    if painted.shape != image.shape:
        painted = np.array(Image.fromarray(painted).resize(cell_size(image)[::-1]))
        return painted
    mixed = (OPACITY * painted.astype(np.float32) + (1 - OPACITY) * image + 0.5).astype(np.uint8)
    known = valid.numpy()
    return np.where(known[..., None], mixed, image // 4) if known.shape == image.shape[:2] else painted


def _areas(samples: Sequence[tuple[str, Sample]], name: str, task: Task) -> np.ndarray | None:
    """Pixels of each class in all samples; None where labels are no maps of classes."""
    total = None
    for _, sample in samples:
        if name in sample.target and (areas := task.areas(sample.target[name], sample.valid[name])) is not None:
            total = areas if total is None else total + areas
    return total
