"""Counts of one image: how many predicted and true boundary pixels there are, and how many are matched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from polyptych.metrics._boundary_benchmark.correspondence import connect, reach
from polyptych.metrics._boundary_benchmark.matching import match_levels
from polyptych.metrics._boundary_benchmark.protocols import BenchmarkSettings
from polyptych.metrics._boundary_benchmark.suppression import suppress
from polyptych.metrics._boundary_benchmark.thinning import thin_pixels

COLUMNS = ("cntR", "sumR", "cntP", "sumP")
"""Matched and all true pixels, over all truths; predicted pixels matched with any truth, and all of them."""


def count_matches(prediction: Float[np.ndarray, "h w"] | Bool[np.ndarray, "t h w"],
                  truths: Sequence[Bool[np.ndarray, "h w"]], protocol: BenchmarkSettings) -> Int[np.ndarray, "t 4"]:
    """The counts of one image at every threshold, int64, in the order of :data:`COLUMNS`.

    With several truths, the set of matched predicted pixels depends on the matching; it is the one of least total
    distance. With one truth, only the number of pairs matters.

    Args:
        prediction: probabilities, or a binary map for every threshold of the protocol.
        truths: thin maps of the same size, one for each annotator.
    """
    shape = (prediction.shape[-2], prediction.shape[-1])
    levels = _thinned_levels(prediction, protocol)
    known = np.zeros(shape[0] * shape[1], bool)
    for pixels in levels:
        known[pixels] = True
    rows = np.flatnonzero(known).astype(np.int32)
    number = np.cumsum(known, dtype=np.int32) - 1
    start = np.cumsum([0, *(len(pixels) for pixels in levels)])
    members = number[np.concatenate(levels)]
    matched = np.zeros(len(members), bool)
    counts = np.zeros((len(levels), 4), np.int64)
    for truth in truths:
        columns = (thin_pixels(truth) if protocol.thin_truth else np.flatnonzero(truth)).astype(np.int32)
        graph = connect(rows, columns, shape, reach(shape, protocol.max_dist))
        counts[:, 0] += match_levels(*graph, start, members, len(truths) > 1, matched)
        counts[:, 1] += len(columns)
    counts[:, 2] = counts[:, 0] if len(truths) == 1 else np.diff(np.cumsum(np.pad(matched, (1, 0)))[start])
    counts[:, 3] = np.diff(start)
    return counts


def _thinned_levels(prediction: Float[np.ndarray, "h w"] | Bool[np.ndarray, "t h w"],
                    protocol: BenchmarkSettings) -> list[Int[np.ndarray, " n"]]:
    """The pixels of the thinned prediction at every threshold."""
    levels: list[Int[np.ndarray, " n"]] = []
    size = -1
    for mask in _levels(prediction, protocol):
        # Maps of increasing thresholds are nested: if they have the same number of pixels, they are equal.
        before, size = size, int(np.count_nonzero(mask))
        same = prediction.ndim == 2 and before == size
        levels.append(levels[-1] if same else thin_pixels(mask))
    return levels


def _levels(prediction: Float[np.ndarray, "h w"] | Bool[np.ndarray, "t h w"],
            protocol: BenchmarkSettings) -> Iterator[Bool[np.ndarray, "h w"]]:
    if prediction.ndim == 3:
        yield from prediction
        return
    strength = suppress(prediction) if protocol.nms else prediction
    for threshold in protocol.thresholds:
        yield strength > threshold if protocol.strict else strength >= threshold
