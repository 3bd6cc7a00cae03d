"""Users' folders in miniature: one with every type of file and some missing labels, and two without a description, in
the form of public datasets."""

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
    """``dataset.toml`` and what it describes: twelve images in two folders and of two sizes, eight tasks. For every
    task, one image in four has no label."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.toml").write_text(DESCRIPTION, encoding="utf-8")
    (folder / "lists").mkdir()
    (folder / "lists" / "test.txt").write_text("".join(f"{name}\n" for name in TEST), encoding="utf-8")
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
    (folder / "persons.json").write_text(json.dumps(coco), encoding="utf-8")
    (folder / "weather.csv").write_text("".join(weather), encoding="utf-8")


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
    Image.fromarray(array).save(_prepare(path), lossless=True)  # only WebP has this option


def _prepare(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


STREET_SIZE = (72, 96)
STREET_COUNTS = {"train": 16, "val": 4, "test": 6}
SKY, BUILDING, ROAD, CAR, PEDESTRIAN, VOID = range(6)


def write_street(folder: Path) -> None:
    """Street scenes in the common packing of CamVid: ``train/``, ``trainannot/`` and so on, and lists of pairs with
    paths of another machine. Class ids are in gray pictures, without names."""
    colors = np.array([(150, 190, 235), (130, 100, 90), (95, 95, 100), (180, 40, 50), (235, 200, 60), (60, 60, 60)])
    number = 0
    for split, count in STREET_COUNTS.items():
        pairs = []
        for _ in range(count):
            random, name = np.random.default_rng(number), f"0016E5_{7959 + 2 * number:05}.png"
            ids = _street(random)
            light = random.integers(-25, 26) + random.normal(0, 8, (*STREET_SIZE, 3))
            _save_picture(folder / split / name, (colors[ids] + light).clip(0, 255).astype(np.uint8))
            _save_picture(folder / f"{split}annot" / name, ids.astype(np.uint8))
            pairs.append(f"/SegNet/CamVid/{split}/{name} /SegNet/CamVid/{split}annot/{name}\n")
            number += 1
        (folder / f"{split}.txt").write_text("".join(pairs), encoding="utf-8")


def _street(random: np.random.Generator) -> np.ndarray:
    height, width = STREET_SIZE
    horizon = int(random.integers(height // 3, height // 2))
    ids = np.full(STREET_SIZE, SKY)
    for left in range(0, width, 16):
        ids[horizon - int(random.integers(2, horizon - 4)):horizon, left:left + 14] = BUILDING
    ids[horizon:] = ROAD
    for kind, h, w in ((CAR, 14, 24), (CAR, 12, 20), (PEDESTRIAN, 16, 6)):
        top, left = int(random.integers(horizon - 6, height - h)), int(random.integers(0, width - w))
        ids[top:top + h, left:left + w] = kind
    ids[-3:] = VOID
    return ids


CLOTHES = ("null", "skin", "hair", "shirt", "trousers", "skirt", "shoes", "bag")
CLOTHES_PHOTOS = 24


def write_clothing(folder: Path) -> None:
    """Clothing as in Clothing Co-Parsing: photos of several heights, of which every second one has a map of classes in
    a .mat file; the others have a list of tags. ``label_list.mat`` names the classes."""
    from scipy.io import savemat

    colors = np.array([(215, 215, 210), (225, 175, 145), (80, 50, 30), (200, 60, 60), (50, 70, 130), (160, 60, 150),
                       (30, 30, 30), (110, 150, 70)])
    for number in range(CLOTHES_PHOTOS):
        random, name = np.random.default_rng(number), f"{number + 1:04}"
        ids = _outfit(random, (96 + 8 * (number % 3), 64))
        photo = (colors[ids] + random.normal(0, 8, (*ids.shape, 3))).clip(0, 255).astype(np.uint8)
        Image.fromarray(photo).save(_prepare(folder / f"photos/{name}.jpg"), quality=95)
        kind = ("pixel", "image")[number % 2]
        content = {"groundtruth": ids.astype(np.uint8)} if kind == "pixel" else {"tags": np.unique(ids)[1:]}
        savemat(_prepare(folder / f"annotations/{kind}-level/{name}.mat"), content, do_compression=True)
    names = np.empty((1, len(CLOTHES)), object)
    names[0] = CLOTHES
    savemat(folder / "label_list.mat", {"label_list": names})


def _outfit(random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    null, skin, hair, shirt, trousers, skirt, shoes, bag = range(len(CLOTHES))
    ids = np.full(size, null)
    middle = int(random.integers(24, 40))
    lower, end = (trousers, 84) if random.integers(2) else (skirt, 66)
    for kind, top, bottom, half in ((hair, 4, 14, 7), (skin, 10, 20, 5), (shirt, 20, 48, 12), (skin, 48, 84, 7),
                                    (lower, 46, end, 10), (shoes, 84, 90, 10)):
        ids[top:bottom, middle - half:middle + half] = kind
    if random.integers(2):
        ids[44:58, middle + 11:middle + 20] = bag
    return ids


LAYOUTS: dict[str, Callable[[Path], None]] = {"toml": write_toml, "street": write_street, "clothing": write_clothing}
