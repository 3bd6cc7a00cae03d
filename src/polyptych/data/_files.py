"""Reading single files of a dataset: every failure is an InputError that names the file."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from polyptych.errors import InputError


@contextmanager
def reading(path: Path, needs: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an InputError with the path."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(path, "no such file", needs, "copy the file again or restore it") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, zlib.error, ...
        said = " ".join(str(error).split())  # some errors of numpy have several lines
        raise InputError(path, f"an unreadable file ({type(error).__name__}: {said})", needs,
                         "copy the file again; it is damaged or of another format") from error


def read_color(path: Path, size: tuple[int, int] | None = None) -> UInt8[Tensor, "3 h w"]:
    """An RGB picture, resized (bilinear) to ``size`` (h, w) if given.

    Memory stays interleaved (h w 3): what decoders give and what the uint8 resize of torchvision is fastest
    on.
    """
    with reading(path, "a picture (.jpg, .png)"), Image.open(path) as file:
        picture = as_rgb(file, path)
        if size is not None and picture.size != size[::-1]:
            picture = picture.resize(size[::-1], Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def as_rgb(picture: Image.Image, place: object) -> Image.Image:
    """A picture as 8-bit RGB. Gray of 16 bits is scaled; Pillow alone would clip it to white.

    Raises:
        InputError: pixels are integers of 32 bits or floating-point numbers, which have no scale.
    """
    if picture.mode.startswith("I;16"):
        levels = np.rint(np.asarray(picture).astype(np.uint16) / 257).astype(np.uint8)
        return Image.fromarray(levels).convert("RGB")
    if picture.mode in ("I", "F"):
        kind = "32-bit integers" if picture.mode == "I" else "floating-point numbers"
        raise InputError(place, f"a picture of {kind}",
                         "8 bits for each of red, green and blue, or gray of 8 or 16 bits", "convert it first")
    return picture.convert("RGB")


def read_gray(path: Path) -> np.ndarray:
    """The pixel values (h w) of a gray or palette picture, uint8 or wider; palettes are not applied.

    Lossless WebP knows no gray: a picture with three equal channels is taken as gray too.
    """
    with reading(path, "a picture with one channel"), Image.open(path) as file:
        array = np.array(file.convert("L") if (file.mode, file.format) == ("RGB", "WEBP") else file)
    if array.ndim != 2:
        raise InputError(path, f"a picture with {array.shape[-1]} channels", "one channel",
                         "store ids or values as gray, not as colors")
    return array


def read_npy(path: Path) -> np.ndarray:
    """An array of numbers; object arrays (pickles) are refused."""
    with reading(path, "an array of numbers in .npy format"):
        return np.load(path, allow_pickle=False)


def read_lines(path: Path) -> list[str]:
    """The words of a list of ids, one per line."""
    with reading(path, "a text file with one id per line"):
        return path.read_text().split()


def picture_size(path: Path) -> tuple[int, int]:
    """(h, w) from the header alone."""
    with reading(path, "a picture (.jpg, .png)"), Image.open(path) as file:
        return file.height, file.width


def files_by_stem(folder: Path, suffixes: Collection[str]) -> dict[str, Path]:
    """``{stem: path}`` of the files of a folder with one of ``suffixes``, which are in order of preference;
    empty if there is no such folder. One directory listing, because a dataset on a network disk has thousands
    of files."""
    if not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    listing = [os.path.splitext(name) for name in os.listdir(folder)]
    for suffix in reversed(list(suffixes)):
        found.update((stem, folder / (stem + suffix)) for stem, other in listing if other == suffix)
    return found


def require_files(where: Path, wanted: Iterable[str], have: Collection[str],
                  expected: Callable[[str], Path]) -> None:
    """Refuse a half-copied folder.

    Args:
        where: the folder.
        wanted: names that a list file promises.
        have: names that exist.
        expected: the path where a name is looked for, for the message.

    Raises:
        InputError: names are missing; the first path and the counts are given.
    """
    wanted = list(wanted)
    missing = [name for name in wanted if name not in have]
    if missing:
        paths = tuple(map(expected, missing))
        error = InputError(where, f"{len(wanted) - len(missing)} of {len(wanted)} listed files "
                           f"(the first missing one is {paths[0]})",
                           "every listed file", "copy the dataset again, or shorten its list of ids")
        error.missing = paths
        raise error


def flat(array: np.ndarray, path: Path | str) -> np.ndarray:
    """(h w) real numbers, from (h w) or (h w 1). ``path`` names the file in messages, here and below."""
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 2 or not array.size or array.dtype.kind not in "biuf":
        raise InputError(path, f"{array.dtype} of shape {array.shape}", "real numbers of shape (h, w)",
                         "check that the file belongs to this dataset")
    return array


def class_ids(array: np.ndarray, path: Path | str, lowest: int, highest: int,
              void: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids counted from 0 (uint16) and the mask of labeled pixels, from (h w) ids ``lowest..highest`` and
    ``void``."""
    array = flat(array, path)
    labeled = array != void
    wrong = labeled & ~((array >= lowest) & (array <= highest) & (array == np.floor(array)))  # NaN included
    if wrong.any():
        raise InputError(path, f"class id {array[wrong][0]:g}",
                         f"whole numbers from {lowest} to {highest}, or {void} where there is no label",
                         "check that the segmentation has these classes")
    return np.where(labeled, array - lowest, 0).astype(np.uint16), labeled


def read_npy_color(path: Path) -> UInt8[Tensor, "3 h w"]:
    """A picture stored as floats (h w 3) in [0, 1], rounded to 8 bits, from which it was made."""
    array = read_npy(path)
    if array.ndim != 3 or array.shape[-1] != 3 or not array.size or array.dtype.kind != "f":
        raise InputError(path, f"{array.dtype} of shape {array.shape}", "floating point of shape (h, w, 3)",
                         "check that the file holds an image")
    if not (array.min() >= 0 and array.max() <= 1):  # NaN included
        raise InputError(path, f"values from {array.min():g} to {array.max():g}", "values from 0 to 1",
                         "divide the image by 255")
    return torch.from_numpy(np.rint(array * 255).astype(np.uint8)).permute(2, 0, 1)
