"""Labels that are not maps: keypoints, and the class of an image."""

from __future__ import annotations

import csv
import io
import posixpath
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath

import msgspec
import numpy as np
import torch

from polyptych.data.arrays import read_array
from polyptych.data.files import composed, read_json, read_text, reading, spelled
from polyptych.datasets._folder.labels import Label, Labels, Source, find_readable
from polyptych.datasets._folder.maps import RGB, pairs
from polyptych.datasets._folder.patterns import Pattern
from polyptych.errors import InputError, nearest
from polyptych.types import LabelInfo

_COCO = "a COCO file (JSON with images, annotations and categories)"


@dataclass(frozen=True, kw_only=True)
class KeypointLabels(Labels):
    """Keypoints of persons or rooms: one file for all images in COCO's JSON format, or one array per image, (K, 3) or
    (persons, K, 3), of x, y (in pixels; pixel centers have integer coordinates) and visibility (above 0: visible)."""

    files: str
    """A pattern like points/{id}.npy, or the name of a COCO file like persons.json."""
    key: str = ""
    """Name of the variable in .npz, .mat and .h5 files."""
    classes: tuple[str, ...] = ()
    """Names of the types of keypoints; a COCO file has them already."""
    category: str = ""
    """Category of a COCO file to use, if several have keypoints."""
    colors: tuple[RGB, ...] = ()
    """Color of each type, for pictures."""
    mirror: tuple[tuple[str, str], ...] = ()
    """Pairs of types that a horizontal flip swaps."""
    skeleton: tuple[tuple[str, str], ...] = ()
    """Pairs of types that pictures join by a line; replaces those of a COCO file."""

    def info(self, root: Path, where: str) -> LabelInfo:
        skeleton: tuple[tuple[int, int], ...] = ()
        names = self.classes
        if self._coco():
            category = read_coco(spelled(root / self.files)).category(self.category, root / self.files)
            names, skeleton = category.keypoints, category.skeleton_pairs()
            if self.classes and self.classes != names:
                raise InputError(f"{where}.classes", repr(list(self.classes)),
                                 f"the names in {self.files}: {list(names)}",
                                 "remove it, or make the two agree")
        if not names:
            raise InputError(f"{where}.classes", "nothing", "the name of every type of keypoint", "add them")
        if self.colors and len(self.colors) != len(names):
            raise InputError(f"{where}.colors", f"{len(self.colors)} colors", f"{len(names)}, one for each type",
                             "add or remove colors")
        return LabelInfo(classes=names, colors=self.colors, note=self.note,
                         mirror=pairs(self.mirror, names, f"{where}.mirror"),
                         skeleton=pairs(self.skeleton, names, f"{where}.skeleton") or skeleton)

    def patterns(self, where: str) -> list[Pattern]:
        return [] if self._coco() else [Pattern(self.files, f"{where}.files")]

    def open(self, root: Path, where: str) -> Source:
        if self._coco():
            path = spelled(root / self.files)
            persons = read_coco(path).persons(self.category, path)
            return Source(persons.__contains__, partial(_from_table, persons), persons)
        files = find_readable(Pattern(self.files, f"{where}.files"), root)
        return Source(files.__contains__, partial(self._from_file, files), files, files)

    def _coco(self) -> bool:
        return self.files.lower().endswith(".json") and "{id}" not in self.files

    def _from_file(self, files: dict[str, Path], sample: str, size: tuple[int, int]) -> Label:
        path = files[sample]
        array = read_array(path, self.key)
        array = array[None] if array.ndim == 2 else array
        if array.ndim != 3 or array.shape[1:] != (len(self.classes), 3):
            raise InputError(path, f"an array of shape {array.shape}",
                             f"({len(self.classes)}, 3) or (persons, {len(self.classes)}, 3): x, y, visible",
                             "check the order of the axes and the number of types")
        return _points(array, path, size)


@dataclass(frozen=True, kw_only=True)
class ImageClasses(Labels):
    """One class per image: from a table, or from the name of the folder that holds the image."""

    classes: tuple[str, ...]
    """Names of the classes."""
    table: str = ""
    """A CSV file with lines `id,class`; by default the class is the last folder in the id (cats/001)."""
    colors: tuple[RGB, ...] = ()
    """Color of each class, for pictures."""

    def info(self, root: Path, where: str) -> LabelInfo:
        for name, values in (("classes", self.classes), ("colors", self.colors)):
            if len(set(self.classes)) < max(1, len(self.classes)) or len(values) not in (0, len(self.classes)):
                raise InputError(f"{where}.{name}", f"{len(values)} entries, {len(set(values))} different ones",
                                 "a different name for every class, and a color for each or none",
                                 "rename duplicates, or add or remove entries")
        return LabelInfo(classes=self.classes, colors=self.colors, note=self.note)

    def open(self, root: Path, where: str) -> Source:
        if not self.table:
            return Source(self._has_folder, self._from_folder)
        path, needs = spelled(root / self.table), "a CSV file with lines `id,class`"
        text = read_text(path, needs)
        with reading(path, needs):
            rows = [[composed(cell.strip()) for cell in row] for row in csv.reader(io.StringIO(text)) if row]
        named = [composed(name) for name in self.classes]
        classes: dict[str, int] = {}
        for number, row in enumerate(rows, 1):
            if len(row) != 2 or row[1] not in named:
                raise InputError(f"{path}, line {number}", repr(",".join(row)[:100]),
                                 f"id,class with {nearest(row[-1], self.classes)}", "use one of these classes")
            if row[0] in classes:
                raise InputError(f"{path}, line {number}", f"'{row[0][:100]}' a second time",
                                 "one line for each image", "remove one of the lines")
            classes[row[0]] = named.index(row[1])
        return Source(classes.__contains__, partial(_class_of, classes), classes)

    def _has_folder(self, sample: str) -> bool:
        return PurePosixPath(sample).parent.name in map(composed, self.classes)

    def _from_folder(self, sample: str, size: tuple[int, int]) -> Label:
        folder = PurePosixPath(sample).parent.name
        return _class_of({sample: list(map(composed, self.classes)).index(folder)}, sample, size)


class Category(msgspec.Struct):
    """A category of a COCO file."""

    id: int
    name: str = ""
    keypoints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()

    def skeleton_pairs(self) -> tuple[tuple[int, int], ...]:
        """Pairs counted from 0 (COCO counts from 1); those out of range are left out."""
        count = len(self.keypoints)
        return tuple((a - 1, b - 1) for a, b in self.skeleton if 1 <= a <= count and 1 <= b <= count)


class _Image(msgspec.Struct):
    id: int
    file_name: str


class _Annotation(msgspec.Struct):
    image_id: int
    category_id: int
    keypoints: tuple[float, ...] = ()


class Coco(msgspec.Struct):
    """The parts of a COCO file that keypoints need."""

    images: tuple[_Image, ...]
    annotations: tuple[_Annotation, ...]
    categories: tuple[Category, ...]

    def category(self, name: str, path: Path) -> Category:
        """The only category with keypoints, or the one of that name."""
        found = [c for c in self.categories if c.keypoints and name in ("", c.name)]
        if len(found) != 1:
            raise InputError(path, f"{len(found)} categories with keypoints" + (f" called '{name}'" if name else ""),
                             "exactly one", f"set `category`: {nearest(name, [c.name for c in self.categories])}")
        return found[0]

    def persons(self, name: str, path: Path) -> dict[str, tuple[np.ndarray, Path]]:
        """``{id of the image: points (persons, K, 3)}``; the id is the image's file name without its extension. An
        image without annotations has no persons."""
        category = self.category(name, path)
        count = len(category.keypoints)
        of_image: dict[int, list[tuple[float, ...]]] = defaultdict(list)
        for number, annotation in enumerate(self.annotations):
            if annotation.category_id != category.id or not annotation.keypoints:
                continue
            if len(annotation.keypoints) != 3 * count:
                raise InputError(f"{path}: annotations[{number}].keypoints", f"{len(annotation.keypoints)} numbers",
                                 f"{3 * count}: x, y and visibility of {count} types", "repair the file")
            of_image[annotation.image_id].append(annotation.keypoints)
        names = [composed(posixpath.splitext(image.file_name)[0]) for image in self.images]
        for what, values in (("file name", names), ("id", [image.id for image in self.images])):
            if len(set(values)) < len(values):
                twice = next(value for value, times in Counter(values).items() if times > 1)
                raise InputError(path, f"two images with the {what} '{twice}'", "one entry for each image",
                                 "remove one of them")
        return {sample: (np.array(of_image.get(image.id, ()), np.float64).reshape(-1, count, 3), path)
                for sample, image in zip(names, self.images, strict=True)}


def read_coco(path: Path) -> Coco:
    """Read a COCO file.

    Raises:
        InputError: the file is missing, is not JSON, or lacks what keypoints need.
    """
    with reading(path, _COCO):
        changed = path.stat().st_mtime_ns
    return _read_coco(path, changed)


@lru_cache(maxsize=4)  # the three splits read one file
def _read_coco(path: Path, changed: int) -> Coco:
    return read_json(path, _COCO, Coco)


def _from_table(persons: dict[str, tuple[np.ndarray, Path]], sample: str, size: tuple[int, int]) -> Label:
    return _points(*persons[sample], size)


def _points(array: np.ndarray, path: Path, size: tuple[int, int]) -> Label:
    visible = array[..., 2] > 0
    if not np.isfinite(array[visible]).all() or not np.isfinite(array[..., 2]).all():
        raise InputError(path, "a keypoint that is not finite", "numbers", "set its visibility to 0")
    points = np.concatenate([np.where(visible[..., None], array[..., :2], 0), visible[..., None]], -1)
    return torch.from_numpy(points.astype(np.float32)), torch.ones(size, dtype=torch.bool)


def _class_of(classes: dict[str, int], sample: str, size: tuple[int, int]) -> Label:
    return torch.tensor(classes[sample]), torch.ones(size, dtype=torch.bool)
