"""A user's folder for the tests of the dataset ``folder``: how it is opened, and one with a single label."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from polyptych.datasets.folder import Folder

TASKS = ("semseg", "material", "depth", "normals", "boundaries", "saliency", "keypoints", "classification")
KINDS = {name: "semseg" if name == "material" else name for name in TASKS}


def open_split(root: Path, split: str = "train", tasks=TASKS) -> Folder:
    return Folder.Config(root=root).build(split=split, tasks=tasks)


def by_id(root: Path, tasks=TASKS, splits=("train", "val", "test")) -> dict:
    """Every sample of these splits."""
    datasets = [open_split(root, split, tasks) for split in splits]
    return {sample.info.id: sample for dataset in datasets for sample in map(dataset.read, range(len(dataset)))}


def one_image(folder: Path, task: str, files: str, size=(4, 6), **options) -> Folder:
    """A folder with the image ``a`` and one task."""
    (folder / "images").mkdir(exist_ok=True)
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(folder / "images/a.png")
    lines = [f"{key} = {json.dumps(value)}" for key, value in options.items()]
    (folder / "dataset.toml").write_text("\n".join(
        ["image = \"images/{id}.png\"", "[splits]", "val = 0", "test = 0", f"[tasks.{task}]",
         *([f"files = \"{files}\""] if files else []), *lines]))
    return Folder.Config(root=folder).build(split="train", tasks=(task,))


def only_label(dataset: Folder) -> tuple[torch.Tensor, torch.Tensor]:
    sample = dataset.read(0)
    ((task, target),) = sample.target.items()
    return target, sample.valid[task]
