"""Saved maps and their ground truth: the files of two folders, paired by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from polyptych.data._files import files_by_stem, read_lines
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
        images: text file with the names to take; everything else may be there or not.
        suffixes: of predictions and of ground truth; where a name has several files, the first of these.

    Raises:
        InputError: no folder, no files, or a name without its counterpart.
    """
    found = [_files(folder, own) for folder, own in zip((predictions, truths), suffixes, strict=True)]
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
        raise InputError(folder, "no such folder", "a folder with one file per image", "correct the path")
    if not (found := files_by_stem(folder, suffixes)):
        raise InputError(folder, "a folder without such files", f"files *{', *'.join(suffixes)}", "correct the path")
    return found
