"""Prediction on the user's own images: a picture of every task, one contact sheet, raw arrays on request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from polyptych.checkpoint import load_weights
from polyptych.data.geometry import Geometry
from polyptych.errors import InputError
from polyptych.network import Network
from polyptych.reports.panels import contact_sheet, strip
from polyptych.run import Run, read_run
from polyptych.tasks._base import Task, resize

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}


def load_network(folder: Path, weights: str = "",
                 device: torch.device | None = None) -> tuple[Run, dict[str, Task], Network, int]:
    """A trained network from its run folder, without the data.

    Args:
        weights: ``last`` (the moving average where the run kept one) or ``best`` (by validation skill); empty takes
            what the run selects.

    Returns:
        The run, its tasks, the network in evaluation mode on ``device``, and the step its weights are from.
    """
    run, facts = read_run(folder)
    tasks = run.build_tasks(facts.labels)
    network = run.build_network(tasks, pretrained=False)
    step = load_weights(folder / "checkpoints" / f"{weights or run.select}.safetensors", network)
    return run, tasks, network.to(device or "cpu").eval(), step


@torch.inference_mode()
def predict_image(network: Network, tasks: dict[str, Task], image: Tensor,
                  size: tuple[int, int] | None) -> dict[str, Tensor]:
    """Decoded predictions (no batch dimension) at the image's own size.

    Args:
        image: (3 h w) uint8 RGB.
        size: height and width the network works at; None is the image's own.
    """
    device = next(network.parameters()).device
    native = (int(image.shape[-2]), int(image.shape[-1]))
    output = network(Geometry.resize(native, size or native).image(image)[None].to(device))
    return {name: task.decode(resize(raw, native) if task.dense else raw)[0].cpu()
            for name, task in tasks.items() for raw in [output.final[name].float()]}


def paint_all(tasks: dict[str, Task], decoded: dict[str, Tensor], image: np.ndarray) -> dict[str, np.ndarray]:
    """Every decoded prediction as a picture."""
    return {name: tasks[name].paint(value, image) for name, value in decoded.items()}


def predict(folder: Path, inputs: list[Path], out: Path, *, arrays: bool = False, weights: str = "",
            say: Callable[[object], None] = print) -> list[Path]:
    """Predict every task on images and write pictures.

    Args:
        folder: a run folder.
        inputs: image files, or folders whose images are taken (not those of their subfolders).
        out: receives ``NAME_TASK.png`` for every image and task and ``contact_sheet.png``; with ``arrays`` also
            ``NAME_TASK.npy`` in the task's decoded form (class ids, meters, unit vectors, probabilities).

    Returns:
        The files written.

    Raises:
        InputError: an input is missing or is not an image, or the run cannot be read.
    """
    paths = list(find_images(inputs))
    run, tasks, network, _ = load_network(folder, weights)
    out.mkdir(parents=True, exist_ok=True)
    written, strips = [], []
    for path, stem in zip(paths, unique_stems(paths), strict=True):
        image = read_image(path)
        decoded = predict_image(network, tasks, torch.from_numpy(image).permute(2, 0, 1), run.size)
        painted = paint_all(tasks, decoded, image)
        for name, picture in painted.items():
            written.append(out / f"{stem}_{name}.png")
            Image.fromarray(picture).save(written[-1])
            if arrays:
                written.append(out / f"{stem}_{name}.npy")
                np.save(written[-1], decoded[name].numpy())
        strips.append(strip(image, painted, caption=path.name))
        say(f"{path}: {', '.join(painted)}")
    written.append(out / "contact_sheet.png")
    Image.fromarray(contact_sheet(strips)).save(written[-1])
    return written


def find_images(inputs: Iterable[Path]) -> Iterator[Path]:
    """The images named by files and folders, in order."""
    for path in inputs:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not found:
                raise InputError(path, "a folder without images", f"files ending in {', '.join(sorted(SUFFIXES))}",
                                 "name another folder")
            yield from found
        elif path.is_file():
            yield path
        else:
            raise InputError(path, "no such file or folder", "an image or a folder of images", "check the path")


def unique_stems(paths: list[Path]) -> list[str]:
    """A name for each path's outputs: its stem, numbered where several paths share it: nothing is overwritten."""
    stems = [path.stem for path in paths]
    return [stem if stems.count(stem) == 1 else f"{index:04}_{stem}" for index, stem in enumerate(stems)]


def read_image(path: Path) -> np.ndarray:
    """(h w 3) uint8 RGB, turned upright as its EXIF data says.

    Raises:
        InputError: the file cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(path, f"a file that cannot be read as an image ({error})", "an image",
                         "repair or remove it") from None
