"""Inputs of prediction: images, folders of them, videos, a camera."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from polyptych.data.files import composed, file_names, walk
from polyptych.data.pictures import PICTURES, as_rgb, open_picture, upright
from polyptych.errors import InputError

IMAGES = {*PICTURES, ".apng"}
VIDEOS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv", ".ogv"}
ANIMATIONS = {".gif", ".webp", ".apng"}
"""Images that may have several frames."""
CAMERA = "camera:"
LONGEST = 200
"""Bytes of an input's name in the names of its outputs; file systems take 255."""


class UnreadableInput(InputError):
    """One input cannot be read; the others may be."""


@dataclass(frozen=True)
class Source:
    """One input: a file, or a camera if ``device`` is set. The names of its outputs begin with ``stem``; ``animated``
    means an image file with several frames."""

    path: Path
    stem: str
    device: str = ""
    animated: bool = False

    @property
    def moves(self) -> bool:
        """Whether it has several frames."""
        return bool(self.device) or self.animated or self.path.suffix.lower() in VIDEOS


@dataclass(frozen=True)
class Pixels:
    """An image and its name.

    Attributes:
        remark: which part of the file was not used, in words.
    """

    array: UInt8[np.ndarray, "h w 3"]
    name: str = ""
    remark: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.array.shape[0], self.array.shape[1]


def find_sources(inputs: Iterable[Path | str], recursive: bool = False) -> list[Source]:
    """The images, videos and cameras that files, folders and ``camera:0`` name, in order.

    Args:
        recursive: whether to search subfolders, too.

    Raises:
        InputError: no input is named, one does not exist, or a folder has neither images nor videos.
    """
    found = list(itertools.chain.from_iterable(_named(each, recursive) for each in inputs))
    if not found:
        raise InputError("polyptych predict", "no input", "images, videos, folders of them, or camera:0",
                         "name at least one")
    stems = _unique_stems([path for path, _ in found])
    return [Source(path, stem, device, not device and _is_animated(path))
            for (path, device), stem in zip(found, stems, strict=True)]


def _is_animated(path: Path) -> bool:
    """Whether a file is an animation; an unreadable file is reported later, when it is predicted."""
    if path.suffix.lower() not in ANIMATIONS:
        return False
    with suppress(InputError), open_picture(path, "an image") as picture:
        return int(getattr(picture, "n_frames", 1)) > 1
    return False


def _named(each: Path | str, recursive: bool) -> Iterator[tuple[Path, str]]:
    text, path = str(each), Path(each)
    if text.startswith(CAMERA):
        device = text.removeprefix(CAMERA)
        if not device:
            raise InputError(f"input '{text}'", "a camera without a number", "for instance camera:0", "add the number")
        yield Path(f"camera_{''.join(c if c.isalnum() else '_' for c in device)}"), device
    elif path.is_dir():
        files = sorted(path / name for name in (walk(path) if recursive else file_names(path))
                       if Path(name).suffix.lower() in IMAGES | VIDEOS)
        if not files:
            raise InputError(path, "a folder without images", f"files ending in {', '.join(sorted(IMAGES | VIDEOS))}",
                             "name another folder" if recursive else "name another folder, or add --recursive")
        yield from ((file, "") for file in files)
    elif path.is_file():
        yield path, ""
    elif path.exists():
        raise InputError(path, "neither a file nor a folder", "an image, a video, a folder of them, or camera:0",
                         "save what it delivers as a file first")
    else:
        raise InputError(path, "no such file or folder", "an image, a video, a folder of them, or camera:0",
                         "check the path")


def _unique_stems(paths: list[Path]) -> list[str]:
    """A name for each path's outputs: its stem, numbered if several paths share it, so that nothing is overwritten.
    Some file systems do not distinguish names that differ only in case or in how accents are encoded."""
    short = [_short(path.stem) for path in paths]
    number = Counter(map(_folded, short))
    taken = {stem for stem, times in number.items() if times == 1}
    stems = []
    for index, stem in enumerate(short):
        if number[_folded(stem)] > 1:
            numbered = (f"{place:04}_{stem}" for place in itertools.count(index))  # which an input may be called, too
            stem = next(name for name in numbered if _folded(name) not in taken)
            taken.add(_folded(stem))
        stems.append(stem)
    return stems


def _short(stem: str) -> str:
    """The name, cut to leave room for what is appended to it."""
    while len(os.fsencode(stem)) > LONGEST:
        stem = stem[:-1]
    return stem


def _folded(name: str) -> str:
    return composed(name).casefold()


def as_pixels(image: Path | str | Any) -> Pixels:
    """An image file, a PIL image, or a uint8 array (h w 3) as pixels.

    Raises:
        InputError: it is none of these, or cannot be read.
    """
    if isinstance(image, Pixels):
        return image
    if isinstance(image, (str, Path)):
        array, frames = _read(Path(image))
        remark = f"only the first of {frames} frames; make a video of it to have all" if frames > 1 else ""
        return Pixels(array, Path(image).name, remark)
    if isinstance(image, Image.Image):
        return Pixels(np.array(as_rgb(upright(image), "image")), "")
    if not isinstance(image, np.ndarray):
        got = type(image).__name__
    elif image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        got = f"an array of {image.dtype} and shape {image.shape}"
    else:
        writable = image.flags.writeable and image.flags.c_contiguous  # torch warns of what it could not write into
        return Pixels(image if writable else image.copy(order="C"))
    raise InputError("image", got, "a path, a PIL image or a uint8 RGB array (h w 3)", "convert it first")


def _read(path: Path) -> tuple[UInt8[np.ndarray, "h w 3"], int]:
    """The image as RGB, upright according to its EXIF data (the first frame of an animation), and how many frames (or
    pages) the file has.

    Raises:
        UnreadableInput: the file cannot be read as an image.
    """
    try:
        with open_picture(path, "an image") as picture:
            frames = int(getattr(picture, "n_frames", 1))
            return np.array(as_rgb(upright(picture), path)), frames
    except InputError as error:
        raise UnreadableInput(error.where, error.got, error.needs, error.do) from None
