"""The types of keypoints that a folder has: keypoints.json, or the 48 of GradNorm without names."""

from __future__ import annotations

from pathlib import Path

import msgspec

from polyptych.data.files import read_json
from polyptych.errors import InputError

COUNT = 48


class Types(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``mirror`` lists pairs of types that a horizontal flip swaps, ``skeleton`` pairs that a picture joins by a line;
    both as positions in ``types``, counted from 0."""

    types: tuple[str, ...]
    mirror: tuple[tuple[int, int], ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()


def read_types(path: Path) -> Types:
    """The types in ``keypoints.json``, or 48 numbered types if there is no such file."""
    if not path.exists():
        return Types(tuple(f"keypoint {number + 1}" for number in range(COUNT)))
    types: Types = read_json(path, "JSON with the names 'types', and pairs of their numbers in 'mirror' and 'skeleton'",
                             Types)
    last = len(types.types) - 1
    for pair in (*types.mirror, *types.skeleton):
        if not all(0 <= number <= last for number in pair) or pair[0] == pair[1]:
            raise InputError(path, f"the pair {list(pair)}", f"two different numbers from 0 to {last}",
                             "count the types from 0")
    swapped = [number for pair in types.mirror for number in pair]
    if not types.types or len(set(swapped)) < len(swapped):
        raise InputError(path, "a type in two mirror pairs" if types.types else "no types",
                         "at least one type, each in one mirror pair at most", "correct the file")
    return types
