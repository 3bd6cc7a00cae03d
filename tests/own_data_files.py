"""A small folder of one's own images, as the page "Your own data" assumes it, and many ways to describe it wrong."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (32, 48)
IDS = tuple(f"{number:04}" for number in range(1, 9))

DESCRIPTION = """\
name = "garden"
image = "photos/{id}.jpg"

[splits]
test = "test.txt"
val = ["val.txt"]

[tasks.semseg]
files = "masks/{id}.png"
classes = ["ground", "plant", "sky"]

[tasks.depth]
files = "depth/{id}.png"
unit = "mm"
"""


def write_garden(root: Path) -> None:
    """Eight photos with masks and depth in millimeters."""
    for name, content in garden().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


@cache
def garden() -> dict[str, bytes]:
    """Its files, drawn once for all tests."""
    with tempfile.TemporaryDirectory() as folder:
        _draw_garden(Path(folder))
        return {path.relative_to(folder).as_posix(): path.read_bytes()
                for path in Path(folder).rglob("*") if path.is_file()}


def _draw_garden(root: Path) -> None:
    for number, name in enumerate(IDS):
        random = np.random.default_rng(number)
        ids = np.zeros(SIZE, np.uint8)
        ids[:12], ids[16:24, 4 + number:20 + number] = 2, 1
        colors = np.array([(120, 90, 60), (60, 140, 60), (160, 190, 230)])[ids] + random.normal(0, 8, (*SIZE, 3))
        save(root / f"photos/{name}.jpg", colors.clip(0, 255).astype(np.uint8))
        save(root / f"masks/{name}.png", ids)
        save(root / f"depth/{name}.png", np.where(ids == 2, 0, 1500 + 400 * ids.astype(int)).astype(np.uint16))
    (root / "test.txt").write_text("0007\n0008\n")
    (root / "val.txt").write_text("0006\n")
    (root / "dataset.toml").write_text(DESCRIPTION)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def instead(old: str, new: str) -> Callable[[Path], None]:
    """Write something else into the description."""

    def change(root: Path) -> None:
        text = (root / "dataset.toml").read_text()
        assert text.count(old) == 1, old
        (root / "dataset.toml").write_text(text.replace(old, new))

    return change


def _no_description(root: Path) -> None:
    (root / "dataset.toml").unlink()


def _two_files(root: Path) -> None:
    shutil.copy(root / "masks/0001.png", root / "masks/0001.tif")
    instead("masks/{id}.png", "masks/{id}.*")(root)


def _other_names(root: Path) -> None:
    for path in (root / "masks").iterdir():
        path.rename(path.with_stem(f"mask{path.stem}"))


def _other_size(root: Path) -> None:
    for path in (root / "masks").iterdir():
        save(path, np.zeros((SIZE[1], SIZE[0]), np.uint8))


def _in_color(root: Path) -> None:
    for path in (root / "masks").iterdir():
        save(path, np.full((*SIZE, 3), (0, 128, 64), np.uint8))


def _another_color(root: Path) -> None:
    _in_color(root)
    instead('classes = ["ground", "plant", "sky"]', 'encoding = "colors"\nclasses = ["ground", "plant"]\n'
            "colors = [[90, 60, 30], [0, 128, 0]]")(root)


def _listed_twice(root: Path) -> None:
    (root / "val.txt").write_text("0006\n0007\n")


def _unknown_line(root: Path) -> None:
    (root / "test.txt").write_text("0007\n008\n")


def _no_training_label(root: Path) -> None:
    for name in IDS[:5]:
        (root / f"depth/{name}.png").unlink()


def _deep_images(root: Path) -> None:
    for name in IDS:
        save(root / f"photos/{name}.png", np.zeros(SIZE, np.uint16))
    instead("photos/{id}.jpg", "photos/{id}.png")(root)


def _half_as_large(root: Path) -> None:
    for path in (root / "masks").iterdir():
        save(path, np.array(Image.open(path))[::2, ::2])


def _from_one(root: Path) -> None:
    for path in (root / "masks").iterdir():
        save(path, np.array(Image.open(path)) + 1)


def _masks_as_jpeg(root: Path) -> None:
    for path in list((root / "masks").iterdir()):
        save(path.with_suffix(".jpg"), 100 * np.array(Image.open(path)))
        path.unlink()
    instead("masks/{id}.png", "masks/{id}.jpg")(root)
    instead('"sky"]', '"sky"]\nids = [0, 100, 200]')(root)


def _empty_list(root: Path) -> None:
    (root / "test.txt").write_text("")


WRONG: dict[str, Callable[[Path], None]] = {
    "no description": _no_description,
    "a quotation mark is missing": instead('"photos/{id}.jpg"', '"photos/{id}.jpg'),
    "a key of the file is misspelled": instead("image =", "images ="),
    "a key of a task is misspelled": instead('files = "masks', 'file = "masks'),
    "the table is not named after a kind of task": instead("tasks.semseg", "tasks.segmentation"),
    "a pattern without {id}": instead("masks/{id}.png", "masks/*.png"),
    "a pattern with the wrong folder": instead("masks/{id}.png", "labels/{id}.png"),
    "a pattern with the wrong ending": instead("photos/{id}.jpg", "photos/{id}.png"),
    "a pattern that two files of one image fit": _two_files,
    "names of labels that differ from those of the images": _other_names,
    "ids out of range": instead('["ground", "plant", "sky"]', '["ground", "plant"]'),
    "a class twice": instead('"plant"', '"ground"'),
    "a file of classes that is not there": instead('["ground", "plant", "sky"]', '"classes.txt"'),
    "colors where ids are expected": _in_color,
    "a color that no class has": _another_color,
    "labels of another size (turned)": _other_size,
    "the unit is missing": instead('unit = "mm"\n', ""),
    "a unit that does not exist": instead('"mm"', '"cm"'),
    "images of sixteen bits": _deep_images,
    "a list with an unknown image": _unknown_line,
    "an image in two splits": _listed_twice,
    "shares that add up to more than 1": instead('val = ["val.txt"]', "val = 0.4\ntrain = 0.8"),
    "no label of a training image": _no_training_label,
    "a list that is not there": instead("val.txt", "valid.txt"),
    "an empty list": _empty_list,
    "percent for a share": instead('val = ["val.txt"]', "val = 20"),
    "a backslash in a path": instead("photos/{id}", "photos\\{id}"),
    "another name for a kind of task": instead("tasks.depth", "tasks.disparity"),
    "a table without its classes": instead('classes = ["ground", "plant", "sky"]\n', ""),
    "a number in place of a list": instead('"sky"]', '"sky"]\nignore = 255'),
    "classes as a table": instead('["ground", "plant", "sky"]', "{ground = 0, plant = 1, sky = 2}"),
    "ids that begin at one": _from_one,
    "masks stored as JPEG": _masks_as_jpeg,
    "labels half as large as images": _half_as_large,
    "the photos as labels": instead("masks/{id}.png", "photos/{id}.jpg"),
    "normals with two axes": instead('[tasks.depth]\nfiles = "depth/{id}.png"\nunit = "mm"',
                                     '[tasks.normals]\nfiles = "depth/{id}.png"\naxes = ["x", "y"]'),
}
"""What is wrong with it, and how it comes about."""
