"""``polyptych data convert``: annotations become pictures of ids, with a description that the dataset ``folder`` reads.
A picture can be viewed, and every program reads the same pixels from it."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from polyptych.data.files import composed, walk
from polyptych.data.pictures import PICTURES
from polyptych.data.preparation.annotation_files import FORMATS, AnnotatedImage, Annotations, Options
from polyptych.errors import InputError, nearest

BACKGROUND = "background"
_MOST = 65535  # objects in one image, and classes


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        classes: the classes, in the order of their ids.
        images: number of images.
        left_out: labels that ``classes`` does not name and shapes without an area, with their numbers.
        description: the text of a dataset.toml.
        written: whether it was written; an existing file is not changed.
    """

    classes: tuple[str, ...]
    images: int
    left_out: dict[str, int]
    description: str
    written: bool


def convert_annotations(form: str, source: Path, out: Path, options: Options = Options(),  # noqa: B008 (frozen)
                        unlabeled: bool = False, images: Path | None = None,
                        progress: Callable[[int, int], None] = lambda done, total: None) -> Conversion:
    """Draw ``semseg/ID.png`` (class ids) and ``instances/ID.png`` (objects counted from 1; 0 is none) into ``out``.

    Args:
        unlabeled: pixels that no region covers have no label; otherwise they are the class ``background``.
        images: folder of the images; by default they are searched in ``out`` and next to the annotations.

    Raises:
        InputError: a file cannot be read, or one of the output folders already exists. Nothing is left behind.
    """
    if form not in FORMATS:
        raise InputError("polyptych data convert", f"'{form}'", nearest(form, FORMATS), "choose one")
    if not source.exists():
        raise InputError(source, "no such file or folder", f"the annotations ({form})", "check the path")
    folders = [out / "semseg", out / "instances"]
    for folder in folders:
        if folder.exists():
            raise InputError(folder, "something that exists", "a new folder", "remove it, or name another place")
    read = FORMATS[form](source, options)
    classes = read.classes if unlabeled or BACKGROUND in read.classes else (BACKGROUND, *read.classes)
    if not read.classes or len(classes) >= _MOST:
        raise InputError(source, f"{len(read.classes)} classes", f"1 to {_MOST - 1}", "check the source")
    void = 255 if len(classes) < 255 else _MOST
    start = void if unlabeled else classes.index(BACKGROUND)
    left_out: Counter[str] = Counter()
    done: set[str] = set()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".convert-") as place:
        for image in read.images:
            if image.id in done:
                raise InputError(image.place, f"'{image.id}' a second time", "one entry for each image", "remove one")
            done.add(image.id)
            semseg, instances = _drawn(image, classes, start, void, left_out)
            _write(Path(place) / "semseg" / f"{image.id}.png",
                   semseg.astype(np.uint8 if void == 255 else np.uint16))
            if read.instances:
                _write(Path(place) / "instances" / f"{image.id}.png", instances)
            progress(len(done), 0)
        if not done:
            raise InputError(source, "no image", "at least one", "check the source")
        pattern = _image_pattern(out, source, images, done, read.pictures)
        text = _describe(form, source, read, classes, void, pattern)
        for folder in folders:
            if (made := Path(place) / folder.name).exists():
                shutil.move(made, folder)
    path = out / "dataset.toml"
    if new := not path.exists():
        path.write_text(text, encoding="utf-8")
    left_out.update(read.ignored)
    return Conversion(classes, len(done), dict(left_out), text, new)


def _drawn(image: AnnotatedImage, classes: tuple[str, ...], start: int, void: int,
           left_out: Counter[str]) -> tuple[np.ndarray, np.ndarray]:
    """Draw class ids and object numbers; each region covers those before it."""
    semseg = np.full(image.size, start, np.int64)
    instances = np.zeros(image.size, np.uint16)
    number = 0
    for region in image.regions:
        mask = region.draw()
        if region.label not in classes:
            left_out[f"'{region.label}'"] += 1
            semseg[mask], instances[mask] = void, 0  # it covers the regions below, and its class was not asked for
            continue
        semseg[mask] = classes.index(region.label)
        number += region.counted
        if number > _MOST:
            raise InputError(image.place, f"more than {_MOST} objects", "fewer in one image", "split the image")
        instances[mask] = number if region.counted else 0
    if image.unknown is not None:
        unknown = image.unknown()
        semseg[unknown], instances[unknown] = void, 0
    return semseg, instances


def _write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        Image.fromarray(array).save(path)
    except OSError as error:
        raise InputError(path, f"{error.strerror or error} while writing", "free, writable disk",
                         "free some space or name another folder") from error


def _image_pattern(out: Path, source: Path, images: Path | None, ids: set[str], but: Path | None) -> str:
    """Where the images of these ids are, as a pattern relative to ``out``; empty if they are not found. Pictures in the
    folder ``but`` do not count."""
    beside = source if source.is_dir() else source.parent
    for base in [images] if images is not None else list(dict.fromkeys((beside, out, beside.parent))):
        found: Counter[tuple[str, str]] = Counter()
        for below in walk(base) if base.is_dir() else ():
            stem, suffix = os.path.splitext(composed(below))
            if suffix.lower() not in PICTURES or below.startswith((".convert-", "semseg/", "instances/")):
                continue
            parts = stem.split("/")
            if but is not None and (base / below).is_relative_to(but):
                continue
            # The id may contain folders: take the longest suffix of the path that is an id.
            end = next((place for place in range(len(parts)) if "/".join(parts[place:]) in ids), None)
            if end is not None:
                found["/".join([*parts[:end], ""]), suffix] += 1
        if found:
            folder, suffix = found.most_common(1)[0][0]
            same = [key for key in found if key[0] == folder]
            prefix = os.path.relpath(base, out).replace(os.sep, "/")
            prefix = "" if prefix == "." else f"{prefix}/"
            return f"{prefix}{folder}{{id}}{suffix if len(same) == 1 else '.*'}"
    return ""


def _describe(form: str, source: Path, read: Annotations, classes: tuple[str, ...], void: int, pattern: str) -> str:
    lines = [f"# Written by `polyptych data convert {form}` from {source.name}"]
    lines.append(f"image = {_quoted(pattern)}" if pattern else
                 'image = "images/{id}.jpg"  # the images were not found: correct this')
    lines += ["", "[tasks.semseg]", 'files = "semseg/{id}.png"', "classes = [",
              *(f"    {_quoted(name)}," for name in classes), "]", f"ignore = [{void}]"]
    if read.instances:
        lines += ["", "[tasks.boundaries]", 'from = "instances"', 'files = "instances/{id}.png"']
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
