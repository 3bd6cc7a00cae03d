"""From counts to the scores: ODS, OIS and average precision.

Source: Arbelaez, Maire, Fowlkes and Malik, TPAMI 2011
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Curve(NamedTuple):
    """Recall, precision and F (0 to 1) at every threshold."""

    recall: Float[np.ndarray, " t"]
    precision: Float[np.ndarray, " t"]
    F: Float[np.ndarray, " t"]


class Best(NamedTuple):
    """A point of a curve, or between two of its points."""

    threshold: float
    recall: float
    precision: float
    F: float


def trace(counts: Int[np.ndarray, "t 4"], empty: str = "zero") -> Curve:
    """The curve of summed counts cntR, sumR, cntP, sumP; for ``empty`` see
    :class:`polyptych.metrics._boundary_benchmark.protocols.BenchmarkSettings`."""
    hit_r, sum_r, hit_p, sum_p = counts.T
    recall, precision = hit_r / np.maximum(sum_r, 1), hit_p / np.maximum(sum_p, 1)
    if empty == "one":
        precision[sum_p == 0] = 1
        recall[sum_r == 0], precision[sum_r == 0] = 1, 0
    return Curve(recall, precision, harmonic(recall, precision))


def harmonic(recall: Float[np.ndarray, " t"], precision: Float[np.ndarray, " t"]) -> Float[np.ndarray, " t"]:
    """F; 0 where both are 0."""
    total = recall + precision
    return 2 * recall * precision / np.where(total > 0, total, 1)


def best(curve: Curve, thresholds: Float[np.ndarray, " t"]) -> Best:
    """The threshold of the highest F; the first one on ties."""
    k = int(np.argmax(curve.F))
    return Best(float(thresholds[k]), float(curve.recall[k]), float(curve.precision[k]), float(curve.F[k]))


def best_between(curve: Curve, thresholds: Float[np.ndarray, " t"]) -> Best:
    """Like :func:`best`, with 100 linearly interpolated points between neighboring thresholds, as BSDS reports ODS."""
    found = best(curve, thresholds)
    share = np.linspace(0, 1, 100)
    for k in range(len(thresholds) - 1):
        recall, precision, threshold = (
            (1 - share) * x[k] + share * x[k + 1] for x in (curve.recall, curve.precision, thresholds))
        between = best(Curve(recall, precision, harmonic(recall, precision)), threshold)
        found = between if between.F > found.F else found
    return found


def best_per_image(counts: Int[np.ndarray, "n t 4"], thresholds: Float[np.ndarray, " t"],
                   empty: str = "zero") -> Best:
    """OIS: the counts of every image at its own best threshold, summed; the threshold is their mean."""
    picks = [int(np.argmax(trace(image, empty).F)) for image in counts]
    summed = np.sum([image[k] for image, k in zip(counts, picks, strict=True)], axis=0)
    curve = trace(summed[None], empty)
    return Best(float(np.mean(thresholds[picks])), float(curve.recall[0]), float(curve.precision[0]),
                float(curve.F[0]))


def average_precision(curve: Curve) -> float:
    """A hundredth of the sum of precision at recalls 0, 0.01, ..., 1, linearly interpolated.

    Recalls that the curve does not reach count as precision 0, so a curve that ends early loses area. If several
    thresholds have the same recall, the lowest one is used. This is not scikit-learn's average precision.
    """
    recall, first = np.unique(curve.recall, return_index=True)
    grid = np.arange(101) / 100
    return float(np.interp(grid, recall, curve.precision[first], left=0, right=0).sum() / 100)
