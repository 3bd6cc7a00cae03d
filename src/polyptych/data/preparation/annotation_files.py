"""Readers for the files of annotation tools: for every image, its regions in drawing order.

``FORMATS`` holds a reader for each format. Regions are functions that draw them, so that only one image of thousands is
in memory at a time.
"""

from __future__ import annotations

import base64
import binascii
import io
import itertools
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import msgspec
import numpy as np
from jaxtyping import Bool, Integer
from PIL import Image, ImageDraw

from polyptych.data.files import composed, read_json, read_text, reading, walk
from polyptych.data.pictures import LARGEST_PICTURE, PICTURES, Size, identify, picture_size, read_rgb, read_stored
from polyptych.errors import InputError

Mask = Bool[np.ndarray, "h w"]
Draw = Callable[[], Mask]


@dataclass(frozen=True)
class Region:
    """One object or area.

    Attributes:
        draw: returns its pixels as a mask with the size of its image.
        counted: whether it is one object, not a crowd of objects or an area without a shape.
    """

    label: str
    draw: Draw
    counted: bool = True


@dataclass(frozen=True)
class AnnotatedImage:
    """The regions of one image, the covered ones first.

    Attributes:
        id: path of the image without its extension, relative to the folder of the images.
        place: the file (and entry) that lists them, for messages.
        unknown: pixels that the file marks as unlabeled.
    """

    id: str
    size: Size
    regions: list[Region]
    place: str
    unknown: Draw | None = None


@dataclass(frozen=True)
class Annotations:
    """All of a source.

    Attributes:
        classes: in the order of the file, or alphabetical if it has none.
        images: the images, read one at a time.
        ignored: the number of shapes that cannot be drawn (points, lines), by kind, counted while ``images`` is read.
        instances: whether regions are objects, so that they can be told apart.
        pictures: folder of pictures that are annotations, not images.
    """

    classes: tuple[str, ...]
    images: Iterator[AnnotatedImage]
    ignored: dict[str, int]
    instances: bool = True
    pictures: Path | None = None


def _checked_id(name: str, place: str) -> str:
    """The id of an image from its file name; it becomes a path, so it must stay inside the output folder."""
    path = PurePosixPath(composed(name.replace("\\", "/")))
    if path.is_absolute() or ".." in path.parts or not path.name or "\0" in name or ":" in path.parts[0]:
        raise InputError(place, f"the image '{name[:100]}'", "the name of a file inside the folder of images",
                         "correct the name")
    return str(path.with_suffix(""))


def _checked_size(height: float, width: float, place: str) -> Size:
    if not (height >= 1 and width >= 1 and height * width <= LARGEST_PICTURE):
        raise InputError(place, f"an image of {height:g}x{width:g} pixels (height x width)",
                         f"at least 1 and at most {LARGEST_PICTURE / 1e6:.0f} million pixels", "correct the size")
    return int(height), int(width)


def _polygon(points: Any, size: Size, place: str) -> Mask:
    """Border pixels belong to it, as with LabelMe's own converter."""
    points = np.asarray(points, np.float64).reshape(-1, 2)
    if len(points) < 3 or not np.isfinite(points).all():
        raise InputError(place, f"a polygon of {len(points)} points", "at least three, all of them numbers",
                         "remove or repair it")
    picture = Image.new("1", size[::-1])
    ImageDraw.Draw(picture).polygon([tuple(point) for point in points], outline=1, fill=1)
    return np.array(picture)


def _box(corners: Any, size: Size) -> Mask:
    corners = np.asarray(corners, np.float64).reshape(2, 2)
    picture = Image.new("1", size[::-1])
    (left, top), (right, bottom) = corners.min(0), corners.max(0)
    ImageDraw.Draw(picture).rectangle((left, top, right, bottom), outline=1, fill=1)
    return np.array(picture)


def _pasted(part: np.ndarray, left: int, top: int, size: Size, place: str) -> Mask:
    """A mask of the whole image from the mask of a part of it."""
    if left < 0 or top < 0 or top + part.shape[0] > size[0] or left + part.shape[1] > size[1]:
        raise InputError(place, f"a mask of {part.shape[0]}x{part.shape[1]} pixels at row {top}, column {left}",
                         f"one within the image, {size[0]}x{size[1]} (height x width)", "repair it")
    mask = np.zeros(size, bool)
    mask[top:top + part.shape[0], left:left + part.shape[1]] = part > 0
    return mask


# -- LabelMe -----------------------------------------------------------------------------------------------


class _Shape(msgspec.Struct):
    label: str
    points: list[tuple[float, float]]
    shape_type: str = "polygon"
    mask: str | None = None


class _LabelMe(msgspec.Struct):
    shapes: list[_Shape]
    imageHeight: int = 0
    imageWidth: int = 0


def read_labelme(source: Path, options: Options) -> Annotations:
    """A folder with one JSON file for each image."""
    needs = "a LabelMe file (JSON with shapes, imageHeight and imageWidth)"
    files = sorted(name for name in walk(source) if name.lower().endswith(".json")) if source.is_dir() else []
    if not files:
        raise InputError(source, "no JSON file", "a folder with a LabelMe file for each image", "correct the path")
    ignored: dict[str, int] = defaultdict(int)

    def content(name: str) -> _LabelMe:
        found: _LabelMe = read_json(source / name, needs, _LabelMe)
        return found

    def images() -> Iterator[AnnotatedImage]:
        for name in files:
            read, place = content(name), str(source / name)
            size = _checked_size(read.imageHeight, read.imageWidth, place)
            regions = []
            for number, shape in enumerate(read.shapes):
                draw = _labelme_shape(shape, size, f"{place}: shapes[{number}]")
                if draw is None:
                    ignored[shape.shape_type] += 1
                else:
                    regions.append(Region(composed(shape.label), draw))
            yield AnnotatedImage(_checked_id(name, place), size, regions, place)

    classes = options.classes or tuple(sorted({composed(shape.label) for name in files for shape in
                                               content(name).shapes}))
    return Annotations(classes, images(), ignored)


def _labelme_shape(shape: _Shape, size: Size, place: str) -> Draw | None:
    points = shape.points
    if shape.shape_type == "polygon":
        return lambda: _polygon(points, size, place)
    if shape.shape_type == "rectangle" and len(points) in (2, 4):
        return lambda: _box([np.min(points, 0), np.max(points, 0)], size)
    if shape.shape_type == "circle" and len(points) == 2:
        center, rim = np.array(points)
        reach = float(np.hypot(*(rim - center)))
        return lambda: np.hypot(*(np.indices(size)[::-1] - center[:, None, None])) <= reach
    if shape.shape_type == "mask" and shape.mask and points:
        return lambda: _labelme_mask(shape, size, place)
    return None


def _labelme_mask(shape: _Shape, size: Size, place: str) -> Mask:
    try:
        content = io.BytesIO(base64.b64decode(shape.mask or "", validate=True))
    except binascii.Error as error:
        raise InputError(place, f"a mask that cannot be read ({error})", "a picture in base64", "repair it") from None
    with reading(Path(place), "a mask"), identify(content, place) as picture:
        left, top = map(round, shape.points[0])
        return _pasted(np.array(picture.convert("L")), left, top, size, place)


# -- COCO --------------------------------------------------------------------------------------------------


class _Category(msgspec.Struct):
    id: int
    name: str


class _CocoImage(msgspec.Struct):
    id: int
    file_name: str
    height: int
    width: int


class _CocoAnnotation(msgspec.Struct):
    image_id: int
    category_id: int
    segmentation: Any = None
    area: float = 0
    iscrowd: int = 0


class _Coco(msgspec.Struct):
    images: list[_CocoImage]
    annotations: list[_CocoAnnotation]
    categories: list[_Category]


def _names(categories: list[_Category], path: Path) -> dict[int, str]:
    names = {category.id: composed(category.name) for category in sorted(categories, key=lambda each: each.id)}
    if not names or len(set(names.values())) < len(categories):
        raise InputError(f"{path}: categories",
                         f"{len(categories)} entries, {len(set(names.values()))} of them different",
                         "different ids and names", "correct the file")
    return names


def read_coco_instances(source: Path, options: Options) -> Annotations:
    """One JSON file with polygons or run lengths; smaller objects cover larger ones."""
    try:
        from pycocotools import mask as coco
    except ImportError:
        raise InputError(source, "a COCO file, which needs another package", "the package pycocotools",
                         "pip install 'polyptych[formats]'") from None
    read: _Coco = read_json(source, "a COCO file (JSON with images, annotations and categories)", _Coco)
    names = _names(read.categories, source)
    of_image: dict[int, list[tuple[int, _CocoAnnotation]]] = defaultdict(list)
    ignored: dict[str, int] = defaultdict(int)
    for number, annotation in enumerate(read.annotations):
        if annotation.category_id not in names:
            raise InputError(f"{source}: annotations[{number}].category_id", str(annotation.category_id),
                             "the id of one of its categories", "correct the file")
        if annotation.segmentation:
            of_image[annotation.image_id].append((number, annotation))
        else:
            ignored["annotation without a segmentation"] += 1

    def mask(annotation: _CocoAnnotation, size: Size, place: str) -> Mask:
        with reading(Path(place), "polygons or run lengths"):
            shape = annotation.segmentation
            if isinstance(shape, dict):
                if list(shape.get("size", ())) != list(size):
                    raise InputError(place, f"run lengths of {shape.get('size')}",
                                     f"the size of the image, {list(size)}", "correct the file")
                runs = coco.frPyObjects(shape, *size) if isinstance(shape.get("counts"), list) else shape
            else:
                runs = coco.merge(coco.frPyObjects(shape, *size))
            return coco.decode(runs).astype(bool)

    def images() -> Iterator[AnnotatedImage]:
        for image in read.images:
            place = f"{source}: image {image.id}"
            size = _checked_size(image.height, image.width, place)
            regions = [Region(names[each.category_id], partial(mask, each, size, f"{source}: annotations[{number}]"),
                              not each.iscrowd)
                       for number, each in sorted(of_image[image.id], key=lambda pair: -pair[1].area)]
            yield AnnotatedImage(_checked_id(image.file_name, place), size, regions, place)

    return Annotations(options.classes or tuple(names.values()), images(), ignored)


class _Segment(msgspec.Struct):
    id: int
    category_id: int
    iscrowd: int = 0


class _Panoptic(msgspec.Struct):
    file_name: str
    segments_info: list[_Segment]


class _PanopticFile(msgspec.Struct):
    annotations: list[_Panoptic]
    categories: list[_Category]


def read_coco_panoptic(source: Path, options: Options) -> Annotations:
    """A JSON file next to a folder of the same name, with a PNG for each image whose colors are ids of segments."""
    read: _PanopticFile = read_json(source, "a COCO panoptic file (JSON with annotations and categories)",
                                    _PanopticFile)
    names, folder = _names(read.categories, source), source.with_suffix("")

    def images() -> Iterator[AnnotatedImage]:
        for each in read.annotations:
            sample = _checked_id(each.file_name, str(source))
            path = folder / each.file_name
            color = read_rgb(path).astype(np.int64)
            ids = color[..., 0] + 256 * color[..., 1] + 65536 * color[..., 2]
            known = {segment.id for segment in each.segments_info} | {0}
            strange = [int(value) for value in np.unique(ids) if int(value) not in known]
            if strange:
                raise InputError(path, f"the segment {strange[0]}", f"segments that {source.name} lists",
                                 "add it there, or remove it from the picture")
            regions = []
            for segment in each.segments_info:
                if segment.category_id not in names:
                    raise InputError(f"{source}: {each.file_name}", f"category {segment.category_id}",
                                     "one of its categories", "correct the category")
                regions.append(Region(names[segment.category_id], _equal(ids, segment.id), not segment.iscrowd))
            yield AnnotatedImage(sample, (int(ids.shape[0]), int(ids.shape[1])), regions, str(path), _equal(ids, 0))

    return Annotations(options.classes or tuple(names.values()), images(), {}, pictures=folder)


def _equal(ids: Integer[np.ndarray, "h w"], value: int) -> Draw:
    return lambda: ids == value


# -- CVAT --------------------------------------------------------------------------------------------------


def read_cvat(source: Path, options: Options) -> Annotations:
    """"CVAT for images 1.1": one XML file with polygons, boxes, and masks, which ``z_order`` puts in order."""
    needs = "an XML file of CVAT (\"CVAT for images 1.1\")"
    text = read_text(source, needs)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # which could expand to any size
        raise InputError(source, "XML with a document type", needs, "export the annotations again")
    with reading(source, needs):
        tree = ElementTree.fromstring(text)
    entries = tree.findall("image")
    if tree.tag != "annotations" or not entries:
        raise InputError(source, f"<{tree.tag}> with {len(entries)} images", needs,
                         "export as \"CVAT for images 1.1\"")
    stated = [composed(label.findtext("name", "")) for label in tree.iterfind("meta//labels/label")]
    used = sorted({composed(shape.get("label", "")) for image in entries for shape in image if shape.get("label")})
    ignored: dict[str, int] = defaultdict(int)

    def images() -> Iterator[AnnotatedImage]:
        for image in entries:
            place = f"{source}: image '{image.get('name', '')}'"
            with reading(Path(place), needs):
                size = _checked_size(float(image.get("height", 0)), float(image.get("width", 0)), place)
                regions = []
                for shape in sorted(image, key=lambda each: int(each.get("z_order", 0))):
                    draw = _cvat_shape(shape, size, place)
                    if draw is None:
                        ignored[shape.tag] += 1
                    else:
                        regions.append(Region(composed(shape.get("label", "")), draw))
            yield AnnotatedImage(_checked_id(image.get("name", ""), place), size, regions, place)

    return Annotations(options.classes or tuple(dict.fromkeys(stated)) or tuple(used), images(), ignored)


def _cvat_shape(shape: ElementTree.Element, size: Size, place: str) -> Draw | None:
    if shape.tag == "polygon":
        points = [tuple(map(float, point.split(","))) for point in shape.get("points", "").split(";")]
        return lambda: _polygon(points, size, place)
    if shape.tag == "box":
        left, top, right, bottom = (float(shape.get(name, "nan")) for name in ("xtl", "ytl", "xbr", "ybr"))
        return lambda: _box([(left, top), (right, bottom)], size)
    if shape.tag == "mask":
        left, top, width, height = (int(shape.get(name, 0)) for name in ("left", "top", "width", "height"))
        runs = [int(run) for run in shape.get("rle", "").split(",")]
        if min(runs) < 0 or sum(runs) != width * height:
            raise InputError(place, f"a mask of {sum(runs)} pixels", f"{height}x{width} (height x width)", "repair it")
        flags = np.arange(len(runs)) % 2 == 1  # runs of pixels alternate between outside and inside
        return lambda: _pasted(np.repeat(flags, runs).reshape(height, width), left, top, size, place)
    return None


# -- one picture for each class ----------------------------------------------------------------------------


def read_class_pictures(source: Path, options: Options) -> Annotations:
    """A folder with a black-and-white picture for each image and class (Labelbox, Supervisely, many scripts)."""
    text = composed(options.files)
    if text.count("{id}") != 1 or text.count("{class}") != 1:
        raise InputError("--files", repr(text), "a path with {id} and {class}", 'for instance "{id}/{class}.png"')
    parts = {"{id}": "(?P<id>.+)" if "/" not in text else "(?P<id>.+?)", "{class}": "(?P<name>[^/]+)", "*": "[^/]*"}
    pattern = re.compile("".join(parts.get(part, re.escape(part))
                                 for part in re.split(r"(\{id\}|\{class\}|\*)", text)))
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for below in sorted(walk(source)) if source.is_dir() else ():
        match = pattern.fullmatch(composed(below))
        if match and Path(below).suffix.lower() in PICTURES:
            found[match["id"]][match["name"]] = source / below
    if not found:
        raise InputError(source, f"no picture that fits '{text}'", "a picture for each image and class",
                         "correct the path or --files")
    names = options.classes or tuple(sorted(set(itertools.chain.from_iterable(found.values()))))

    def images() -> Iterator[AnnotatedImage]:
        for sample, files in sorted(found.items()):
            first = next(iter(files.values()))
            size = picture_size(first)
            ordered = sorted(files.items(), key=lambda item: names.index(item[0]) if item[0] in names else -1)
            yield AnnotatedImage(_checked_id(f"{sample}.png", str(first)), size,
                                 [Region(name, _set(path, size)) for name, path in ordered], str(first))

    return Annotations(names, images(), {}, instances=False, pictures=source)


def _set(path: Path, size: Size) -> Draw:
    def draw() -> Mask:
        stored = read_stored(path)
        if stored.ndim == 3 and stored.shape[-1] == 4 and not stored[..., 3].all():
            stored = stored[..., 3]  # transparent pixels are outside
        elif stored.ndim == 3:
            stored = stored[..., :3].max(-1)
        if stored.shape != size:
            raise InputError(path, f"{stored.shape[0]}x{stored.shape[1]} pixels (height x width)",
                             f"the size of the other pictures of its image, {size[0]}x{size[1]}", "export it again")
        # Half of the largest value, so that the gray of smoothed borders is on the right side
        return stored > (stored.max() / 2 if stored.dtype != bool else 0)

    return draw


@dataclass(frozen=True)
class Options:
    """The user's options for a source.

    Attributes:
        classes: the order of the classes; other labels are left out. Empty takes all classes.
        files: for pictures per class, the pattern of their paths.
    """

    classes: tuple[str, ...] = ()
    files: str = "{id}/{class}.png"


FORMATS: Mapping[str, Callable[[Path, Options], Annotations]] = {
    "labelme": read_labelme, "coco": read_coco_instances, "coco_panoptic": read_coco_panoptic, "cvat": read_cvat,
    "class_pictures": read_class_pictures,
}
