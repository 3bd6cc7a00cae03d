"""Predictions and ground truth on disk: pairing of names, and every format in which they come."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy import ndimage

from polyptych.data._contours import contours
from polyptych.data.arrays import load_mat, read_npy
from polyptych.data.files import files_by_stem, read_lines
from polyptych.data.pictures import read_levels
from polyptych.errors import InputError
from polyptych.metrics._boundary_benchmark.thinning import thin

TruthKind = Literal["auto", "edges", "regions", "edges-as-regions"]
UCMKind = Literal["contours", "partition"]
Mask = Bool[np.ndarray, "h w"]

_REGION_KEYS = ("LabelMap", "segmentation")  # of PASCAL-Context and NYUD_MT


class Pair(NamedTuple):
    """The files of one image."""

    name: str
    prediction: Path
    truth: Path


def pair_files(predictions: Path, truths: Path, images: Path | None = None) -> list[Pair]:
    """The files of two folders by name without suffix, sorted.

    Args:
        predictions: .mat, .npy or .png files; where a name has several, the first of these.
        truths: .mat or .png files.
        images: text file with the names to take; everything else may be there or not.

    Raises:
        InputError: no folder, no files, or a name without its counterpart.
    """
    found = [_files(predictions, (".mat", ".npy", ".png")), _files(truths, (".mat", ".png"))]
    if images is not None:
        names = read_lines(images, "a text file with names of images, one per line")
        if not names:
            raise InputError(images, "an empty list", "names of images, one per line", "leave it out to take all")
    else:
        names = sorted(found[0].keys() | found[1].keys())
    for folder, files, role in ((predictions, found[0], "prediction"), (truths, found[1], "ground truth")):
        if missing := [name for name in names if name not in files]:
            raise InputError(folder, f"no {role} for '{missing[0]}' ({len(missing)} of {len(names)} names)",
                             "a prediction and a ground truth for every name",
                             "add the file, or give a list of the images that are to be measured")
    return [Pair(name, found[0][name], found[1][name]) for name in names]


def _files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(folder, "no such folder", "a folder with one file per image", "correct the path")
    if not (found := files_by_stem(folder, suffixes)):
        raise InputError(folder, "a folder without such files", f"files *{', *'.join(suffixes)}", "correct the path")
    return found


def read_prediction(path: Path, thresholds: tuple[float, ...], *, strict: bool = False,
                    ucm: UCMKind = "contours") -> Float[np.ndarray, "h w"] | Bool[np.ndarray, "t h w"]:
    """Probabilities from 0 to 1 (float64), or a binary map for every threshold.

    - ``.png`` with 8 or 16 bits: the share of the highest value.
    - ``.npy``: floats from 0 to 1, or uint8 or uint16 as in a picture, or bool.
    - ``.mat`` with ``ucm2``, an ultrametric contour map on the grid of pixels and the cracks between them:
      ``contours`` samples every second value; ``partition`` cuts it at every threshold into regions and takes their
      boundaries, as SEISM does.
    - ``.mat`` with ``segs``, a cell of segmentations, one for each threshold.

    Raises:
        InputError: what is in the file is none of these.
    """
    if _suffix(path) == ".png":
        return _probabilities(*read_levels(path), path)
    if _suffix(path) == ".npy":
        return _probabilities(array := read_npy(path), _top(array), path)
    variables = _variables(path)
    if "segs" in variables:
        return np.stack([contours(_regions(cell, path)) for cell in _cell(variables["segs"], path)])
    if "ucm2" not in variables:
        raise InputError(path, f"the variables {', '.join(variables) or '(none)'}", "ucm2 or segs",
                         "save the contour map under one of these names")
    double = _probabilities(variables["ucm2"], _top(variables["ucm2"]), path)
    if not double.shape[0] % 2 or not double.shape[1] % 2 or min(double.shape) < 3:
        raise InputError(path, f"ucm2 of {double.shape[0]}x{double.shape[1]}", "2h+1 x 2w+1 values",
                         "save the map at double size")
    if ucm == "contours":
        return double[2::2, 2::2]
    return np.stack([_partition(double > t if strict else double >= t) for t in thresholds])


def count_segmentations(path: Path) -> int | None:
    """How many segmentations the cell ``segs`` of a prediction has; None for every other kind of file."""
    if _suffix(path) != ".mat":
        return None
    variables = _variables(path)
    return len(_cell(variables["segs"], path)) if "segs" in variables else None


def read_truths(path: Path, kind: TruthKind = "auto") -> list[Mask]:
    """Maps of true boundaries, one for each annotator.

    - ``.mat`` with ``groundTruth``, a cell of structs: ``Boundaries`` as stored, or thinned contours of
      ``Segmentation`` for the kind ``regions``.
    - ``.mat`` with ``LabelMap`` or ``segmentation``, or ``.png`` with region ids: their thinned contours.
    - ``.png`` with 0 and 255: boundaries as they are.

    Args:
        kind: ``auto`` decides as above. ``edges-as-regions`` takes the thinned contours of the map of boundaries,
            which is what the edge tool of published NYUD scores makes of the edge pictures: each line becomes a band
            of two pixels and is thinned again.

    Raises:
        InputError: what is in the file is none of these, or a picture of 0 and 1 that may be either.
    """
    if _suffix(path) == ".png":
        return [_truth(*read_levels(path), path, kind)]
    variables = _variables(path)
    for key in _REGION_KEYS:
        if key in variables:
            return [_truth(variables[key], 1, path, "regions" if kind == "auto" else kind)]
    if "groundTruth" not in variables:
        raise InputError(path, f"the variables {', '.join(variables) or '(none)'}",
                         "groundTruth, LabelMap or segmentation", "check that this is a file of ground truth")
    field = "Segmentation" if kind == "regions" else "Boundaries"
    kind = "edges" if kind == "auto" else kind
    found = []
    for cell in _cell(variables["groundTruth"], path):
        if cell.dtype.names is None or field not in cell.dtype.names or not cell.size:
            raise InputError(path, "a groundTruth without it", f"the field '{field}' of every annotator",
                             "check that the file is whole")
        found.append(_truth(np.asarray(cell[field].flat[0]), 1, path, kind))
    return found


def _suffix(path: Path) -> str:
    return path.suffix.lower()


def _top(array: np.ndarray) -> int:
    """The largest number of an unsigned type of 8 or 16 bits; 0 of other types."""
    return int(np.iinfo(array.dtype).max) if array.dtype in (np.uint8, np.uint16) else 0


def _variables(path: Path) -> dict[str, np.ndarray]:
    return load_mat(path, "a MATLAB file (at most version 7.2)")


def _cell(value: np.ndarray, path: Path) -> list[np.ndarray]:
    if value.dtype != object or not value.size:
        raise InputError(path, "an array or an empty cell", "a cell of arrays or structs", "check the file")
    return list(value.flat)


def _probabilities(value: np.ndarray, top: int, path: Path) -> Float[np.ndarray, "h w"]:
    """Shares of ``top``, the largest number that there may be, if that is not 0."""
    if value.ndim != 2 or not value.size:
        raise InputError(path, f"an array of shape {value.shape}", "one value per pixel (h w)", "save a single map")
    if value.dtype == bool:
        return value.astype(np.float64)
    if top and value.dtype.kind in "iu":
        return value / top
    if value.dtype.kind != "f" or not (value.min() >= 0 and value.max() <= 1):  # false for NaN
        bounds = f" from {value.min():.4g} to {value.max():.4g}" if value.dtype.kind in "fiu" else ""
        raise InputError(path, f"{value.dtype} values{bounds}", "floats from 0 to 1, or 8 or 16 bits unsigned",
                         "save probabilities, after the sigmoid")
    return value.astype(np.float64)


def _regions(value: np.ndarray, path: Path) -> Integer[np.ndarray, "h w"]:
    if value.ndim != 2 or not value.size or value.dtype.kind not in "iuf" or (
            value.dtype.kind == "f" and not np.array_equal(value, np.rint(value))):
        raise InputError(path, f"{value.dtype} values of shape {value.shape}", "a map of region ids (h w)",
                         "check the file")
    return value.astype(np.int64)


def _truth(value: np.ndarray, top: int, path: Path, kind: TruthKind) -> Mask:
    """``top`` stands for a boundary, if 0 and it are the only numbers."""
    if kind == "regions":
        return thin(contours(_regions(value, path)))
    ids = _regions(value.astype(np.uint8) if value.dtype == bool else value, path)
    levels = np.unique(ids)
    if kind == "auto" and value.dtype != bool and not set(levels.tolist()) <= {0, top}:
        if levels[-1] <= 1:
            raise InputError(path, "a picture of 0 and 1", "to know whether they are regions or boundaries",
                             "state it with --truth regions or --truth edges")
        return thin(contours(ids))
    if len(levels) > 2 or levels[0] < 0:
        raise InputError(path, f"{len(levels)} different values", "a map of boundaries and nothing else (0 and 255)",
                         "use --truth regions if these are region ids")
    return thin(contours(ids)) if kind == "edges-as-regions" else ids > 0


def _partition(cracks: Bool[np.ndarray, "h2 w2"]) -> Mask:
    """Thinned contours of the regions that the cracks part."""
    cracks[::2, ::2] = True
    return thin(contours(ndimage.label(~cracks)[0][1::2, 1::2]))
