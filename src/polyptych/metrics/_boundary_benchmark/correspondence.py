"""One-to-one matching of the pixels of two thin maps: as many pairs as possible and, of these, the nearest.

Source: Martin, Fowlkes and Malik, TPAMI 2004. Their program (Goldberg and Kennedy's assignment on a graph with random
outlier edges, seeded by the clock) approximates what is computed here exactly and without chance.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from polyptych.metrics._boundary_benchmark.matching import candidates, match_most, match_nearest


class Graph(NamedTuple):
    """Pairs of a row (predicted pixel) and a column (true pixel) within reach, listed from either side.

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
    """How far a match may be off, in pixels; ``max_dist`` is a fraction of the image's diagonal."""
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


class Correspondence(NamedTuple):
    """What was matched: two maps with equally many pixels, and the sum of distances in hundredths of a pixel."""

    prediction: Bool[np.ndarray, "h w"]
    truth: Bool[np.ndarray, "h w"]
    cost: int


def correspond(prediction: Bool[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"],
               max_dist: float) -> Correspondence:
    """Match predicted with true pixels one to one: a maximum-cardinality matching of least total distance.

    Args:
        prediction, truth: thin maps of one size.
        max_dist: pixels farther apart than this fraction of the diagonal are no pair.
    """
    rows, columns = (np.flatnonzero(mask).astype(np.int32) for mask in (prediction, truth))
    graph = connect(rows, columns, prediction.shape, reach(prediction.shape, max_dist))
    row_mates, cost = _match_all(graph)
    found = Correspondence(np.zeros(prediction.shape, bool), np.zeros(truth.shape, bool), int(cost))
    found.prediction.flat[rows[row_mates >= 0]] = True
    found.truth.flat[columns[row_mates[row_mates >= 0]]] = True
    return found


def _match_all(graph: Graph) -> tuple[Int[np.ndarray, " n"], int]:
    """The column of each row (-1 for none), and the total cost.

    Where rows are in excess every column is matched, everywhere else every row: each part is solved from that side.
    """
    n, m = graph.row_start.size - 1, graph.column_start.size - 1
    mates, found, backward = (np.full(size, -1, np.int32) for size in (n, n, n))
    column_mates, other = np.full(m, -1, np.int32), np.full(m, -1, np.int32)
    rows, columns = np.zeros(n, bool), np.zeros(m, bool)
    match_most(graph.row_start, graph.row_edges, np.ones(n, bool), mates, column_mates, rows, columns)
    cost = match_nearest(graph.row_start, graph.row_edges, graph.row_costs, ~rows, ~columns, found, other)
    cost += match_nearest(graph.column_start, graph.column_edges, graph.column_costs, columns, rows, other, backward)
    return np.where(rows, backward, found), cost
