"""The annotation files of the Decathlon: COCO JSON, joined on ``image_id``."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import msgspec

from polyptych.data.files import read_json, reading
from polyptych.errors import InputError

_NEEDS = "an annotation file of the decathlon (JSON with images, annotations and categories)"


class Annotated(NamedTuple):
    """One image: its id in the annotation file, its path below the folder of the images, its class (counted from 0)."""

    id: int
    path: str
    label: int


@dataclass(frozen=True)
class Annotations:
    """``classes`` in the order of their category ids, which is that of the labels."""

    classes: tuple[str, ...]
    images: tuple[Annotated, ...]


class _Image(msgspec.Struct):
    id: int
    file_name: str


class _Annotation(msgspec.Struct):
    image_id: int
    category_id: int


class _Category(msgspec.Struct):
    id: int
    name: str


class _File(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category]


def read_annotations(path: Path) -> Annotations:
    """The labeled images of one file, in the order of their ids.

    A label is the rank of its category id among the file's categories. (The class folders would give other numbers:
    sorted as strings, "10" comes before "2".)

    Raises:
        InputError: the file is missing or damaged, ids occur twice, an image has no category or more than one, or its
            path leads out of the dataset.
    """
    with reading(path, _NEEDS):
        status = path.stat()
    return _read(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)  # a run reopens its splits often, and the file of imagenet12 has a million images
def _read(path: Path, changed: int, size: int) -> Annotations:
    content: _File = read_json(path, _NEEDS, _File)
    categories = sorted(content.categories, key=lambda category: category.id)
    label = {category.id: rank for rank, category in enumerate(categories)}
    of_image = {annotation.image_id: annotation.category_id for annotation in content.annotations}
    _refuse(path, len(label) < len(categories), "two categories with one id")
    _refuse(path, len(of_image) < len(content.annotations), "an image with several annotations")
    _refuse(path, len({image.id for image in content.images}) < len(content.images), "two images with one id")
    images = []
    for image in sorted(content.images, key=lambda image: image.id):
        category = of_image.get(image.id)
        _refuse(path, category is None, f"image {image.id} without an annotation")
        _refuse(path, category not in label, f"category id {category}, which is none of its categories")
        below = PurePosixPath(image.file_name.removeprefix("data/"))
        _refuse(path, below.is_absolute() or ".." in below.parts or "\0" in image.file_name,
                f"the path {image.file_name!r} of image {image.id}")
        images.append(Annotated(image.id, str(below), label[category]))  # type: ignore[index]
    return Annotations(tuple(category.name for category in categories), tuple(images))


def held_out(images: Sequence[Annotated], share: float) -> set[int]:
    """The ids of the training images that make up ``val``: the last images of every class in the order of ids, as many
    as come closest to ``share``, but never all. A contiguous block, because neighboring ids may show the same object
    (frames of one traffic sign)."""
    of_class: dict[int, list[int]] = defaultdict(list)
    for image in images:
        of_class[image.label].append(image.id)
    taken: set[int] = set()
    for ids in of_class.values():
        count = min(math.floor(share * len(ids) + 0.5), len(ids) - 1)
        taken.update(sorted(ids)[len(ids) - count:])
    return taken


def _refuse(path: Path, wrong: bool, got: str) -> None:
    if wrong:
        raise InputError(path, got, _NEEDS, "unpack decathlon-1.0-devkit.tar.gz again")
