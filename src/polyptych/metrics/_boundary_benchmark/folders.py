"""Predictions and ground truth on disk: every format in which boundaries come."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Integer
from scipy import ndimage

from polyptych.data._contours import contours
from polyptych.data.arrays import load_mat
from polyptych.data.pictures import read_levels
from polyptych.errors import InputError
from polyptych.metrics._boundary_benchmark.thinning import thin
from polyptych.metrics._saved_maps import probabilities, read_probabilities

TruthKind = Literal["auto", "edges", "regions", "edges-as-regions"]
UCMKind = Literal["contours", "partition"]
Mask = Bool[np.ndarray, "h w"]

_REGION_KEYS = ("LabelMap", "segmentation")  # of PASCAL-Context and NYUD_MT


def read_prediction(path: Path, thresholds: tuple[float, ...], *, strict: bool = False,
                    ucm: UCMKind = "contours") -> Float[np.ndarray, "h w"] | Bool[np.ndarray, "t h w"]:
    """Probabilities from 0 to 1 (float64), or a binary map for every threshold.

    - ``.png`` and ``.npy``: see :func:`polyptych.metrics._saved_maps.read_probabilities`.
    - ``.mat`` with ``ucm2``, an ultrametric contour map on the grid of pixels and the cracks between them:
      ``contours`` samples every second value; ``partition`` cuts it at every threshold into regions and takes their
      boundaries, as SEISM does.
    - ``.mat`` with ``segs``, a cell of segmentations, one for each threshold.

    Raises:
        InputError: the file holds none of these.
    """
    if path.suffix.lower() != ".mat":
        return read_probabilities(path)
    variables = _variables(path)
    if "segs" in variables:
        return np.stack([contours(_regions(cell, path)) for cell in _cell(variables["segs"], path)])
    if "ucm2" not in variables:
        raise InputError(path, f"the variables {', '.join(variables) or '(none)'}", "ucm2 or segs",
                         "save the contour map under one of these names")
    double = probabilities(variables["ucm2"], path)
    if not double.shape[0] % 2 or not double.shape[1] % 2 or min(double.shape) < 3:
        raise InputError(path, f"ucm2 of {double.shape[0]}x{double.shape[1]}", "2h+1 x 2w+1 values",
                         "save the map at double size")
    if ucm == "contours":
        return double[2::2, 2::2]
    return np.stack([_partition(double > t if strict else double >= t) for t in thresholds])


def count_segmentations(path: Path) -> int | None:
    """How many segmentations the cell ``segs`` of a prediction has; None for every other kind of file."""
    if path.suffix.lower() != ".mat":
        return None
    variables = _variables(path)
    return len(_cell(variables["segs"], path)) if "segs" in variables else None


def read_truths(path: Path, kind: TruthKind = "auto") -> list[Mask]:
    """Maps of true boundaries, one for each annotator.

    - ``.mat`` with ``groundTruth``, a cell of structs: ``Boundaries`` as stored, or thinned contours of
      ``Segmentation`` for the kind ``regions``.
    - ``.mat`` with ``LabelMap`` or ``segmentation``, or ``.png`` with region ids: their thinned contours.
    - ``.png`` with the lowest and the highest value of its bits alone, 0 and 255: boundaries, used as they are.

    Args:
        kind: ``auto`` decides as above. ``edges-as-regions`` takes the thinned contours of the map of boundaries,
            as the edge tool of published NYUD scores does with edge pictures: each line becomes a band of two pixels
            and is thinned again.

    Raises:
        InputError: the file holds none of these, or is an ambiguous picture of 0 and 1.
    """
    if path.suffix.lower() == ".png":
        values, highest = read_levels(path)
        return [_truth(values, path, kind, {0, highest})]
    variables = _variables(path)
    for key in _REGION_KEYS:
        if key in variables:
            return [_truth(variables[key], path, "regions" if kind == "auto" else kind)]
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
        found.append(_truth(cell[field].flat[0], path, kind))
    return found


def _variables(path: Path) -> dict[str, np.ndarray]:
    return load_mat(path, "a MATLAB file (at most version 7.2)")


def _cell(value: np.ndarray, path: Path) -> list[np.ndarray]:
    if value.dtype != object or not value.size:
        raise InputError(path, "an array or an empty cell", "a cell of arrays or structs", "check the file")
    return list(value.flat)


def _regions(value: np.ndarray, path: Path) -> Integer[np.ndarray, "h w"]:
    if value.ndim != 2 or not value.size or value.dtype.kind not in "iuf" or (
            value.dtype.kind == "f" and not np.array_equal(value, np.rint(value))):
        raise InputError(path, f"{value.dtype} values of shape {value.shape}", "a map of region ids (h w)",
                         "check the file")
    return value.astype(np.int64)


def _truth(value: np.ndarray, path: Path, kind: TruthKind, binary: Collection[int] = (0, 1)) -> Mask:
    """Decide between boundaries and region ids if that was not given: values other than ``binary`` mean region ids."""
    if kind == "regions":
        return thin(contours(_regions(value, path)))
    ids = _regions(value.astype(np.uint8) if value.dtype == bool else value, path)
    levels = np.unique(ids)
    if kind == "auto" and value.dtype != bool and not set(levels.tolist()) <= set(binary):
        if levels[-1] <= 1:
            raise InputError(path, "a picture of 0 and 1", "a statement whether they are regions or boundaries",
                             "add --truth regions or --truth edges")
        return thin(contours(ids))
    if len(levels) > 2 or levels[0] < 0:
        raise InputError(path, f"{len(levels)} different values", "a map of boundaries and nothing else (0 and 255)",
                         "use --truth regions if these are region ids")
    return thin(contours(ids)) if kind == "edges-as-regions" else ids > 0


def _partition(cracks: Bool[np.ndarray, "h2 w2"]) -> Mask:
    """Thinned contours of the regions that the cracks separate."""
    cracks[::2, ::2] = True
    return thin(contours(ndimage.label(~cracks)[0][1::2, 1::2]))
