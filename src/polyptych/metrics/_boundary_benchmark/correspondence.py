"""Which pixels of two thin maps may be matched. From these pairs, :mod:`.matching` takes a one-to-one matching of
maximum size with the least total distance.

Source: Martin, Fowlkes and Malik, TPAMI 2004. Their program (Goldberg and Kennedy's assignment on a graph with random
outlier edges, seeded by the clock) approximates what is computed here exactly and deterministically.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from polyptych.metrics._boundary_benchmark.matching import candidates


class Graph(NamedTuple):
    """Pairs of a row (predicted pixel) and a column (true pixel) within the tolerance, listed from either side.

    ``row_edges[row_start[i]:row_start[i + 1]]`` are the columns of row i by increasing distance, ``row_costs`` their
    distances in hundredths of a pixel, rounded; the same for columns.
    """

    row_start: np.ndarray
    row_edges: np.ndarray
    row_costs: np.ndarray
    column_start: np.ndarray
    column_edges: np.ndarray
    column_costs: np.ndarray


def reach(shape: tuple[int, int], max_dist: float) -> float:
    """Maximum distance of a match, in pixels; ``max_dist`` is a fraction of the image's diagonal."""
    return max_dist * math.hypot(*shape)


def connect(rows: Int[np.ndarray, " n"], columns: Int[np.ndarray, " m"], shape: tuple[int, int],
            radius: float) -> Graph:
    """The graph of two sets of pixels, given as increasing positions (int32) in the flattened map of ``shape``."""
    window = math.floor(radius)
    y, x = np.mgrid[-window:window + 1, -window:window + 1].reshape(2, -1)
    squared = y**2 + x**2
    near = np.lexsort((x, y, squared))
    near = near[squared[near] <= radius**2]
    offsets = np.stack([y[near], x[near]], 1)
    costs = np.rint(100 * np.sqrt(squared[near])).astype(np.int32)
    return Graph(*candidates(rows, columns, shape[0], shape[1], offsets, costs),
                 *candidates(columns, rows, shape[0], shape[1], offsets, costs))
