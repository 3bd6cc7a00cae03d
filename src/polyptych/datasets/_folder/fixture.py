"""A user's folder in miniature: every type of file, and labels that are missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

DESCRIPTION = """\
image = "images/{id}.*"

[splits]
test = "lists/test.txt"
val = 0.2

[tasks.semseg]
files = "classes/{id}.png"
classes = ["ground", "tree", "person"]
ids = [7, [8, 9], 21]
ignore = [0]
colors = [[128, 64, 128], [107, 142, 35], [220, 20, 60]]

[tasks.material]
task = "semseg"
files = "materials/{id}.webp"
classes = ["stone", "wood"]
encoding = "colors"
colors = [[90, 90, 90], [160, 82, 45]]
ignore_colors = [[0, 0, 0]]

[tasks.depth]
files = "depth/{id}.png"
unit = "mm"
invalid = [0, 65535]

[tasks.normals]
files = "normals/{id}.npz"
key = "normals"
axes = ["x", "-y", "-z"]
note = "stored y up, z toward the camera"

[tasks.boundaries]
files = "edges/{id}.tif"
ignore = [2]

[tasks.saliency]
files = "salient/{id}.mat"
key = "map"
threshold = 127.5

[tasks.keypoints]
files = "persons.json"
mirror = [["left hand", "right hand"]]

[tasks.classification]
table = "weather.csv"
classes = ["sunny", "rainy"]
"""

IDS = tuple(f"{day}/{number:02}" for day in ("monday", "tuesday") for number in range(6))
TEST = IDS[-3:]
SIZES = ((40, 56), (48, 64))
"""Of the images of either day."""

KEYPOINTS = ("head", "left hand", "right hand")


def write_toml(folder: Path) -> None:
    """``dataset.toml`` and what it describes: twelve images in two folders and of two sizes, eight tasks. Of every
    task, one image in four has no label."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.toml").write_text(DESCRIPTION)
    (folder / "lists").mkdir()
    (folder / "lists" / "test.txt").write_text("".join(f"{name}\n" for name in TEST))
    coco: dict[str, list[dict[str, object]]] = {"images": [], "annotations": [], "categories": [
        {"id": 1, "name": "person", "keypoints": list(KEYPOINTS), "skeleton": [[1, 2], [1, 3]]}]}
    weather = []
    for number, name in enumerate(IDS):
        random = np.random.default_rng(number)
        size = SIZES[number >= len(IDS) // 2]
        _save_picture(folder / f"images/{name}.{('jpg', 'png')[number % 2]}",
                      random.integers(0, 256, (*size, 3), np.uint8))
        for place, write in enumerate((_classes, _materials, _depth, _normals, _edges, _salient)):
            if (number + place) % 4:
                write(folder, name, size, random)
        if number % 4 != 2:
            coco["images"].append({"id": number, "file_name": f"{name}.jpg"})
            if number % 4:  # the others show no person
                points = random.integers(0, min(size), (len(KEYPOINTS), 2))
                flags = (2, 1, 0)
                coco["annotations"].append({"image_id": number, "category_id": 1, "keypoints": [
                    int(v) for point, flag in zip(points, flags, strict=True) for v in (*point, flag)]})
        if number % 4 != 3:
            weather.append(f"{name},{('sunny', 'rainy')[number % 2]}\n")
    (folder / "persons.json").write_text(json.dumps(coco))
    (folder / "weather.csv").write_text("".join(weather))


def _classes(folder: Path, name: str, size: tuple[int, int], random: np.random.Generator) -> None:
    """A picture with a palette; its indices are the ids."""
    picture = Image.fromarray(_blocks((0, 7, 8, 9, 21), size, random).astype(np.uint8), "P")
    picture.putpalette([value for index in range(256) for value in (index, 255 - index, 5 * index % 256)])
    _prepare(folder / f"classes/{name}.png")
    picture.save(folder / f"classes/{name}.png")


def _materials(folder: Path, name: str, size: tuple[int, int], random: np.random.Generator) -> None:
    colors = np.array([(0, 0, 0), (90, 90, 90), (160, 82, 45)], np.uint8)
    _save_picture(folder / f"materials/{name}.webp", colors[_blocks((0, 1, 2), size, random)])


def _depth(folder: Path, name: str, size: tuple[int, int], random: np.random.Generator) -> None:
    depth = random.integers(500, 9000, size).astype(np.uint16)
    depth[:3], depth[-3:] = 0, 65535
    _save_picture(folder / f"depth/{name}.png", depth)


def _normals(folder: Path, name: str, size: tuple[int, int], random: np.random.Generator) -> None:
    normals = random.normal(size=(*size, 3))
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    normals[:, :4] = 0
    np.savez(_prepare(folder / f"normals/{name}.npz"), normals=normals.astype(np.float32), camera=np.eye(3))


def _edges(folder: Path, name: str, size: tuple[int, int], random: np.random.Generator) -> None:
    _save_picture(folder / f"edges/{name}.tif", random.choice(np.array([0, 1, 2], np.uint8), size, p=(0.8, 0.15, 0.05)))


def _salient(folder: Path, name: str, size: tuple[int, int], random: np.random.Generator) -> None:
    from scipy.io import savemat

    savemat(_prepare(folder / f"salient/{name}.mat"), {"map": random.integers(0, 256, size, np.uint8), "other": 1})


def _blocks(values: tuple[int, ...], size: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    coarse = random.choice(np.array(values), (size[0] // 8, size[1] // 8))
    return coarse.repeat(8, 0).repeat(8, 1)


def _save_picture(path: Path, array: np.ndarray) -> None:
    Image.fromarray(array).save(_prepare(path), lossless=True)  # only WebP looks at it


def _prepare(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


LAYOUTS: dict[str, Callable[[Path], None]] = {"toml": write_toml}
