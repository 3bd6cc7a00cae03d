"""Maps of probabilities in files: pairing them with their ground truth by name, and reading them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from polyptych.data.arrays import read_npy
from polyptych.data.files import files_by_stem, read_lines
from polyptych.data.pictures import read_levels
from polyptych.errors import InputError


class Pair(NamedTuple):
    """The files of one image."""

    name: str
    prediction: Path
    truth: Path


def pair_files(predictions: Path, truths: Path, images: Path | None = None,
               suffixes: tuple[Sequence[str], Sequence[str]] = ((".mat", ".npy", ".png"), (".mat", ".png"))
               ) -> list[Pair]:
    """The files of two folders by name without suffix, sorted.

    Args:
        images: text file with the names to use; other files are ignored.
        suffixes: suffixes of predictions and of ground truth; if a name has several files, the first suffix wins.

    Raises:
        InputError: no folder, no files, one folder for both, or a name without its counterpart.
    """
    found = [_files(folder, own) for folder, own in zip((predictions, truths), suffixes, strict=True)]
    if predictions.samefile(truths):
        raise InputError(truths, "the folder of the predictions", "a folder of ground truth", "check the path")
    if images is not None:
        names = list(dict.fromkeys(read_lines(images)))
        if not names:
            raise InputError(images, "an empty list", "names of images, one per line", "leave it out to take all")
    else:
        names = sorted(found[0].keys() | found[1].keys())
    for folder, files, role in ((predictions, found[0], "prediction"), (truths, found[1], "ground truth")):
        if missing := [name for name in names if name not in files]:
            raise InputError(folder, f"no {role} for '{missing[0]}' ({len(missing)} of {len(names)} names)",
                             "a prediction and a ground truth for every name",
                             "add the file, or list the images to measure with --images")
    return [Pair(name, found[0][name], found[1][name]) for name in names]


def _files(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(folder, "no such folder", "a folder with one file per image", "check the path")
    if not (found := files_by_stem(folder, suffixes)):
        raise InputError(folder, "a folder without such files", f"files *{', *'.join(suffixes)}", "check the path")
    return found


def read_probabilities(path: Path) -> Float[np.ndarray, "h w"]:
    """One map from 0 to 1, float64: from a picture, values divided by the largest that its bits allow; from an array
    (.npy), floats from 0 to 1, 8- or 16-bit values as in a picture, or bool.

    Raises:
        InputError: the file holds something else.
    """
    if path.suffix.lower() == ".npy":
        return probabilities(read_npy(path), path)
    values, highest = read_levels(path)
    return values / highest if highest else probabilities(values, path)


def probabilities(value: np.ndarray, path: Path) -> Float[np.ndarray, "h w"]:
    """An array as one map from 0 to 1, see :func:`read_probabilities`."""
    if value.ndim != 2 or not value.size:
        raise InputError(path, f"an array of shape {value.shape}", "one value per pixel (h w)", "save a single map")
    if value.dtype == bool:
        return value.astype(np.float64)
    if value.dtype in (np.uint8, np.uint16):
        return value / np.iinfo(value.dtype).max
    if value.dtype.kind != "f" or not (value.min() >= 0 and value.max() <= 1):  # false for NaN
        bounds = f" from {value.min():.4g} to {value.max():.4g}" if value.dtype.kind in "fiu" else ""
        raise InputError(path, f"{value.dtype} values{bounds}", "floats from 0 to 1, or 8 or 16 bits unsigned",
                         "save probabilities, after the sigmoid")
    return value.astype(np.float64)
