"""What is predicted on: images, folders of them, videos, a camera."""

from __future__ import annotations

import itertools
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from polyptych.data._files import as_rgb
from polyptych.errors import InputError

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
VIDEOS = {".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".wmv", ".flv", ".ogv"}
CAMERA = "camera:"


@dataclass(frozen=True)
class Source:
    """One input: a file, or a camera where ``device`` is set; ``stem`` begins the names of what is written."""

    path: Path
    stem: str
    device: str = ""

    @property
    def moves(self) -> bool:
        """It has frames."""
        return bool(self.device) or self.path.suffix.lower() in VIDEOS


@dataclass(frozen=True)
class Pixels:
    """An image and its name."""

    array: UInt8[np.ndarray, "h w 3"]
    name: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.array.shape[0], self.array.shape[1]


def find_sources(inputs: Iterable[Path | str], recursive: bool = False) -> list[Source]:
    """The images, videos and cameras that files, folders and ``camera:0`` name, in order.

    Args:
        recursive: also what lies in folders within folders.

    Raises:
        InputError: nothing is there, or a folder has neither images nor videos.
    """
    found = list(itertools.chain.from_iterable(_named(each, recursive) for each in inputs))
    stems = _unique_stems([path for path, _ in found])
    return [Source(path, stem, device) for (path, device), stem in zip(found, stems, strict=True)]


def _named(each: Path | str, recursive: bool) -> Iterator[tuple[Path, str]]:
    text, path = str(each), Path(each)
    if text.startswith(CAMERA):
        device = text.removeprefix(CAMERA)
        if not device:
            raise InputError(f"input '{text}'", "a camera without a number", "for instance camera:0", "add the number")
        yield Path(f"camera_{''.join(c if c.isalnum() else '_' for c in device)}"), device
    elif path.is_dir():
        files = sorted(p for p in (path.rglob("*") if recursive else path.iterdir())
                       if p.suffix.lower() in IMAGES | VIDEOS and p.is_file())
        if not files:
            raise InputError(path, "a folder without images", f"files ending in {', '.join(sorted(IMAGES | VIDEOS))}",
                             "name another folder" if recursive else "name another folder, or add --recursive")
        yield from ((file, "") for file in files)
    elif path.is_file():
        yield path, ""
    else:
        raise InputError(path, "no such file or folder", "an image, a video, a folder of them, or camera:0",
                         "check the path")


def _unique_stems(paths: list[Path]) -> list[str]:
    """A name for each path's outputs: its stem, numbered where several paths share it: nothing is overwritten."""
    number = Counter(path.stem for path in paths)
    return [path.stem if number[path.stem] == 1 else f"{index:04}_{path.stem}" for index, path in enumerate(paths)]


def as_pixels(image: Path | str | Any) -> Pixels:
    """An image file, a PIL image or a uint8 array as one form.

    Raises:
        InputError: it is none of these, or cannot be read.
    """
    if isinstance(image, Pixels):
        return image
    if isinstance(image, (str, Path)):
        return Pixels(read_image(Path(image)), Path(image).name)
    if isinstance(image, Image.Image):
        return Pixels(np.array(as_rgb(ImageOps.exif_transpose(image), "image")), "")
    if not isinstance(image, np.ndarray):
        got = type(image).__name__
    elif image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        got = f"an array of {image.dtype} and shape {image.shape}"
    else:
        writable = image.flags.writeable and image.flags.c_contiguous  # torch warns of what it could not write into
        return Pixels(image if writable else image.copy(order="C"))
    raise InputError("image", got, "a path, a PIL image or a uint8 RGB array (h w 3)", "convert it first")


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """RGB, turned upright as its EXIF data says.

    Raises:
        InputError: the file cannot be read as an image.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # damage beside the pixels
            return np.array(as_rgb(ImageOps.exif_transpose(image), path))
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(path, "no such file", "an image", "check the path") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(path, f"a file that cannot be read as an image ({error})", "an image",
                         "repair or remove it") from None
