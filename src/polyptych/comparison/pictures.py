"""The same test images through all methods: truth and every method's prediction, painted."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from polyptych.prediction.examples import example_images
from polyptych.prediction.predictor import load
from polyptych.reports.panels import Picture, banner, cell_size, contact_sheet, strip
from polyptych.run import read_run

MOST = 4  # images; the page must stay small enough to send


@dataclass(frozen=True)
class ExamplePicture:
    """One picture of the page; ``alt`` describes it in words."""

    picture: UInt8[np.ndarray, "h w 3"]
    alt: str

    @property
    def uri(self) -> str:
        data = io.BytesIO()
        Image.fromarray(self.picture).save(data, "PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width at which it is shown: a whole multiple or fraction of its own."""
        return cell_size(self.picture)


@dataclass(frozen=True)
class Example:
    """One test image: the input, and rows of pictures by task, the truth first."""

    id: str
    image: ExamplePicture
    rows: dict[str, dict[str, ExamplePicture]]

    @property
    def crisp(self) -> bool:
        """Whether it is so small that the page enlarges it; pixels of a label stay squares."""
        return max(self.image.picture.shape) < max(self.image.size)

    def save(self, path: Path) -> None:
        """All rows as one picture file."""
        rows: list[Picture] = []
        for label, row in self.rows.items():
            pictures = strip(self.image.picture, {task: cell.picture for task, cell in row.items()})
            rows += [banner(label, pictures), pictures]
        Image.fromarray(contact_sheet(rows)).save(path)


def examples(folders: dict[str, Path], most: int = MOST) -> list[Example]:
    """Evenly spaced test images through the network of every folder.

    Args:
        folders: a finished run for each label; all have the same data and tasks.
    """
    first = read_run(next(iter(folders.values())))[0]
    number = min(most, first.monitoring.examples or most)  # those that the run's own report shows too
    found = [Example(example.id, ExamplePicture(example.image, f"test image {example.id}"),
                     {"truth": _cells(example.truth, "truth", example.id)})
             for example in example_images(first, number)]
    for label, folder in folders.items():
        predictor = load(folder, device="cpu")
        for example in found:
            painted = predictor.predict(example.image.picture).painted()
            example.rows[label] = _cells(painted, label, example.id)
    return found


def has_weights(folder: Path) -> bool:
    """Whether the run's network still exists; a run with a record may have been pruned."""
    return any((folder / "checkpoints").glob("*.safetensors")) and (folder / "run.json").exists()


def _cells(painted: dict[str, np.ndarray], label: str, image: str) -> dict[str, ExamplePicture]:
    return {task: ExamplePicture(picture, f"{task}, {label}, image {image}") for task, picture in painted.items()}


def write_examples(found: Sequence[Example], out: Path) -> list[Path]:
    """``pictures/000.png`` ... for the Markdown form; returns their paths."""
    folder = out / "pictures"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    paths = [folder / f"{index:03}.png" for index in range(len(found))]
    for example, path in zip(found, paths, strict=True):
        example.save(path)
    return paths
