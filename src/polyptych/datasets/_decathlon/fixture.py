"""The decathlon in miniature: the same files and folders with a few made-up images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from polyptych.datasets._decathlon.domains import DOMAINS

CLASSES = (10, 9, 2)
"""Category ids in the order in which the file lists them: not sorted, not from 0; as strings "10" is before "2"."""
TRAIN, VAL = 6, 2  # images of each class


def write_devkit(folder: Path) -> None:
    """``annotations/`` of the devkit and the unpacked tars: three classes of eight images in each domain; the color of
    an image tells its class."""
    (folder / "annotations").mkdir(parents=True)
    for domain in DOMAINS:
        random = np.random.default_rng(len(domain))
        for split, count in (("train", TRAIN), ("val", VAL)):
            images, annotations = [], []
            for category in CLASSES:
                for copy in range(count):
                    number = 1000 * (split == "val") + 100 * category + copy
                    name = f"{domain}/{split}/{category:04}/{number:06}.jpg"
                    height, width = (72, 72 + 6 * copy) if copy % 2 else (72 + 4 * copy, 72)
                    noise = random.integers(0, 20, (height, width, 1))
                    color = np.array([20 * category, 255 - 20 * category, 128]) + noise
                    path = folder / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(color.clip(0, 255).astype(np.uint8)).save(path, quality=90)
                    images.append({"id": number, "file_name": f"data/{name}", "width": width, "height": height})
                    annotations.append({"id": number, "image_id": number, "category_id": category})
            categories = [{"id": c, "name": f"{domain} class {c}", "supercategory": domain} for c in CLASSES]
            content = {"images": images, "annotations": annotations, "categories": categories}
            (folder / "annotations" / f"{domain}_{split}.json").write_text(json.dumps(content), encoding="utf-8")


LAYOUTS: dict[str, Callable[[Path], None]] = {"devkit": write_devkit}
