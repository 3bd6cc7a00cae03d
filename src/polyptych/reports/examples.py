"""Example pictures of a run: image, truth and prediction of evenly spaced test images, or else validation images."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from polyptych.datasets._base import Dataset, EmptySplit
from polyptych.errors import InputError
from polyptych.prediction.predictor import load
from polyptych.reports.panels import panel
from polyptych.run import Run, read_run


def write_examples(folder: Path) -> list[Path]:
    """Write ``panels/000.png`` ... for a trained run; returns their paths."""
    run, _ = read_run(folder)
    predictor = load(folder, device="cpu")
    tasks = predictor.tasks
    dataset = _unseen(run)
    if dataset is None:
        return []
    number = min(run.monitoring.examples, len(dataset))
    paths = []
    (folder / "panels").mkdir(exist_ok=True)
    for position in range(number):
        try:
            sample = dataset.read(position * len(dataset) // number)
        except InputError:
            if run.loading.on_fault == "stop":
                raise
            continue
        image = sample.image.permute(1, 2, 0).numpy()
        prediction = predictor.predict(image).painted()
        truth = {name: tasks[name].paint_target(target, sample.valid[name], image)
                 for name, target in sample.target.items()}
        paths.append(folder / "panels" / f"{position:03}.png")
        Image.fromarray(panel(image, list(tasks), truth, prediction, caption=sample.info.id)).save(paths[-1])
    return paths


def _unseen(run: Run) -> Dataset | None:
    """Images that the run was not trained on, where the data has any."""
    for split in ("test", "val"):
        try:
            return run.build_dataset(split)
        except EmptySplit:
            continue
    return None
