"""Body parts from the annotation structs of PASCAL-Part.

Source: Chen et al., CVPR 2014, arXiv 1406.2031
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from polyptych.data.arrays import flat, read_mat
from polyptych.datasets._pascal_context.classes import PART_IDS, PERSON
from polyptych.errors import InputError


def read_parts(path: Path) -> Integer[np.ndarray, "h w"] | None:
    """Ids of the 6 parts, 0 elsewhere; None if no person in the image has an annotated part.

    Parts are painted person by person and part by part in the order of the file, so later ones win.

    Raises:
        InputError: the file is not such an annotation.
    """
    ids: np.ndarray | None = None
    for thing in _elements(_field(read_mat(path, "anno"), "objects", path)):
        if np.ravel(_field(thing, "class_ind", path)).tolist() != [PERSON]:
            continue
        for part in _elements(_field(thing, "parts", path)):
            part_id = PART_IDS.get(_text(_field(part, "part_name", path)))
            if part_id is None:
                continue
            mask = flat(_field(part, "mask", path), path) != 0
            if ids is None:
                ids = np.zeros(mask.shape, np.int64)
            if mask.shape != ids.shape:
                raise InputError(path, f"masks of {_size(ids)} and {_size(mask)} pixels", "masks of one size",
                                 "copy the file again")
            ids[mask] = part_id
    return ids


def _elements(structs: np.ndarray) -> list[np.ndarray]:
    """The elements of a struct array; MATLAB's empty array [] has none."""
    return [member.reshape(()) for member in np.split(structs.ravel(), structs.size)] if structs.size else []


def _field(struct: np.ndarray, name: str, path: Path) -> np.ndarray:
    """A field of one struct."""
    if struct.size != 1 or name not in (struct.dtype.names or ()):
        raise InputError(path, f"an annotation without '{name}'",
                         "the struct anno.objects with class_ind, mask and parts.{part_name, mask}",
                         "take the files of human_parts/ in PASCAL_MT")
    value: Any = struct.reshape(())[()][name]
    return np.asarray(value)


def _text(array: np.ndarray) -> str:
    return str(array.ravel()[0]) if array.size == 1 else ""


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]}x{array.shape[1]}"
