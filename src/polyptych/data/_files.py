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
        raise InputError(path, f"an unreadable file ({type(error).__name__}: {error})", needs,
                         "copy the file again; it is damaged or of another format") from error


def read_color(path: Path, size: tuple[int, int] | None = None) -> UInt8[Tensor, "3 h w"]:
    """An RGB picture, resized (bilinear) to ``size`` (h, w) if given.

    Memory stays interleaved (h w 3): what decoders give and what the uint8 resize of torchvision is fastest
    on.
    """
    with reading(path, "a picture (.jpg, .png)"), Image.open(path) as file:
        picture = file.convert("RGB")
        if size is not None and picture.size != size[::-1]:
            picture = picture.resize(size[::-1], Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


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


def read_mat(path: Path, key: str) -> np.ndarray:
    """One variable of a MATLAB file (version 7.2 or older)."""
    from scipy.io import loadmat  # a tenth of a second that other layouts need not spend

    with reading(path, f"a MATLAB file (at most version 7.2) with the variable '{key}'"):
        variables = loadmat(path, variable_names=[key])
    if key not in variables:
        raise InputError(path, "a MATLAB file without it", f"the variable '{key}'",
                         "check that the file belongs to this dataset")
    return variables[key]


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
        raise InputError(where, f"{len(wanted) - len(missing)} of {len(wanted)} listed files "
                         f"(the first missing one is {expected(missing[0])})",
                         "every listed file", "copy the dataset again, or shorten its list of ids")
