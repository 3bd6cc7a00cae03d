"""How published boundary scores differ: suppression, thresholds, tolerance, ground truth."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from polyptych.errors import InputError, nearest


@dataclass(frozen=True)
class BenchmarkSettings:
    """Everything that a score depends on, except the images. Scores of different protocols must not be compared.

    Attributes:
        name: as on the command line.
        max_dist: maximum distance of a match, as a fraction of the image's diagonal.
        thresholds: thresholds at which the prediction is binarized, increasing.
        nms: whether non-maxima of the prediction are suppressed first.
        strict: whether a boundary must exceed the threshold, not just reach it.
        thin_truth: whether maps of true boundaries are thinned like predictions.
        empty: precision and recall if one side is empty. ``zero``: 0/0 counts as 0 (BSDS). ``one``: without truth,
            recall is 1 and precision 0; without prediction, the reverse (SEISM). F is 0 either way.
    """

    name: str
    max_dist: float
    thresholds: tuple[float, ...]
    nms: bool
    strict: bool
    thin_truth: bool
    empty: Literal["zero", "one"]


def even(count: int) -> tuple[float, ...]:
    """i / (count + 1): the thresholds of BSDS, rounded as MATLAB's linspace does.

    The last bit matters: 85/255 of an 8-bit picture must be below the second of five thresholds, not equal to it.
    """
    low, high = 1 / (count + 1), 1 - 1 / (count + 1)
    return tuple(low + i * (high - low) / max(count - 1, 1) for i in range(count))


def closed(count: int) -> tuple[float, ...]:
    """i / (count - 1) with the ends moved inward to 0.001 and 0.999: the thresholds of SEISM."""
    return (0.001, *(i / (count - 1) for i in range(1, count - 1)), 0.999)


_SEISM = {"thresholds": closed(101), "nms": True, "strict": True, "thin_truth": True, "empty": "one"}
_SURVEY = {"thresholds": even(99), "nms": False, "strict": False, "thin_truth": True, "empty": "one"}

PROTOCOLS = {protocol.name: protocol for protocol in (
    BenchmarkSettings("bsds", 0.0075, even(99), nms=False, strict=False, thin_truth=False, empty="zero"),
    BenchmarkSettings("nyud", 0.011, **_SEISM),  # type: ignore[arg-type]
    BenchmarkSettings("pascal", 0.0075, **_SEISM),  # type: ignore[arg-type]
    BenchmarkSettings("nyud_survey", 0.011, **_SURVEY),  # type: ignore[arg-type]
    BenchmarkSettings("pascal_survey", 0.0075, **_SURVEY),  # type: ignore[arg-type]
)}
"""``bsds``: Arbelaez et al., TPAMI 2011. ``nyud`` and ``pascal``: the edge tool of ASTMT, ATRC and InvPT, which reads
predictions as SEISM does. ``nyud_survey`` and ``pascal_survey``: the replacement of that reader in the code of
Vandenhende et al., TPAMI 2021, which has no suppression; several papers list its scores next to those of ``pascal``,
although the two differ."""


def protocol(name: str, thresholds: int | None = None, nms: bool | None = None,
             max_dist: float | None = None) -> BenchmarkSettings:
    """A protocol by name, with deviations.

    Args:
        thresholds: how many, spaced as the protocol spaces them.
        nms, max_dist: replace those of the protocol.

    Raises:
        InputError: an unknown name, too few thresholds, a tolerance that is not a fraction.
    """
    if name not in PROTOCOLS:
        raise InputError(f"protocol '{name}'", "an unknown name", nearest(name, PROTOCOLS), "choose one of them")
    found = PROTOCOLS[name]
    if thresholds is not None:
        outer = found.thresholds[0] == 0.001
        if thresholds < (least := 3 if outer else 1):
            raise InputError("thresholds", str(thresholds), f"{least} or more", f"{len(found.thresholds)} is usual")
        found = replace(found, thresholds=(closed if outer else even)(thresholds))
    if nms is not None:
        found = replace(found, nms=nms)
    if max_dist is not None:
        if not (math.isfinite(max_dist) and 0 <= max_dist <= 0.1):
            raise InputError("max_dist", str(max_dist), "a fraction of the diagonal from 0 to 0.1",
                             f"{found.max_dist} is usual")
        found = replace(found, max_dist=max_dist)
    return found
