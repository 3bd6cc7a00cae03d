"""Thinning, suppression and matching against plain transcriptions, brute force and cases worked out by hand."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from polyptych import native
from polyptych.metrics._boundary_benchmark.correspondence import Graph, connect, reach
from polyptych.metrics._boundary_benchmark.counts import count_matches
from polyptych.metrics._boundary_benchmark.matching import match_most, match_nearest
from polyptych.metrics._boundary_benchmark.protocols import BenchmarkSettings, protocol
from polyptych.metrics._boundary_benchmark.suppression import suppress
from polyptych.metrics._boundary_benchmark.thinning import thin

few = settings(max_examples=150, deadline=None)


def random_map(seed: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """Noise of some density, smooth blobs, or both."""
    g = np.random.default_rng(seed)
    size = size or tuple(g.integers(2, 24, 2))
    field = ndimage.gaussian_filter(g.standard_normal(size), g.uniform(0, 3)) if seed % 3 else g.standard_normal(size)
    return field > np.quantile(field, g.uniform(0, 1))


def points(size: tuple[int, int], *pixels: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(size, bool)
    for y, x in pixels:
        mask[y, x] = True
    return mask


def test_native_code_needs_no_cache(monkeypatch) -> None:
    """A package in a folder that cannot be written, of a user without a home, still compiles."""
    compile_without = native.njit

    def njit(**options):
        if options.pop("cache", False):
            raise RuntimeError("cannot cache function: no locator available")
        return compile_without(**options)

    monkeypatch.setattr(native, "njit", njit)
    assert native.native(lambda x: x + 1)(2) == 3


# -- thinning ------------------------------------------------------------------------------------------------


def plainly_thinned(mask: np.ndarray) -> np.ndarray:
    """The three conditions as they are written, pixel by pixel over the whole map until nothing changes."""
    mask = mask.copy()
    while True:
        before = mask.copy()
        for second in (False, True):
            padded = np.pad(mask, 1)
            for r, c in np.argwhere(mask):
                y, x = r + 1, c + 1
                n = [None, *(bool(padded[y + dy, x + dx]) for dy, dx in (
                    (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1), (0, 1)))]  # x1 .. x9
                g1 = sum(not n[2 * i - 1] and (n[2 * i] or n[2 * i + 1]) for i in range(1, 5))
                n1 = sum(n[2 * k - 1] or n[2 * k] for k in range(1, 5))
                n2 = sum(n[2 * k] or n[2 * k + 1] for k in range(1, 5))
                g3 = ((n[6] or n[7] or not n[4]) and n[5]) if second else ((n[2] or n[3] or not n[8]) and n[1])
                if g1 == 1 and 2 <= min(n1, n2) <= 3 and not g3:
                    mask[r, c] = False
        if (mask == before).all():
            return mask


@few
@given(st.integers(0, 10**6))
def test_thinning_follows_its_conditions(seed: int) -> None:
    mask = random_map(seed)
    before = mask.copy()
    assert np.array_equal(thin(mask), plainly_thinned(mask))
    assert np.array_equal(mask, before)


@few
@given(st.integers(0, 10**6))
def test_thinning_keeps_parts_and_holes(seed: int) -> None:
    mask = random_map(seed)
    thinned = thin(mask)
    assert not (thinned & ~mask).any() and np.array_equal(thin(thinned), thinned)
    around = np.pad(mask, 1), np.pad(thinned, 1)
    assert len({ndimage.label(m, np.ones((3, 3)))[1] for m in around}) == 1
    assert len({ndimage.label(~m)[1] for m in around}) == 1


def test_thinning_agrees_with_skimage() -> None:
    morphology = pytest.importorskip("skimage.morphology", reason="scikit-image is not installed")
    for seed in range(60):
        mask = random_map(seed, (70, 50))
        assert np.array_equal(thin(mask), morphology.thin(mask)), seed


# -- suppression ---------------------------------------------------------------------------------------------


def plainly_suppressed(e: np.ndarray) -> np.ndarray:
    height, width = e.shape
    kernel = [1, 2, 3, 4, 5, 4, 3, 2, 1]
    padded = np.pad(e, 4, mode="symmetric")
    t = sum(kernel[i] * kernel[j] * padded[i:i + height, j:j + width] for i in range(9) for j in range(9)) / 625

    def gradient(a, axis):
        a = np.moveaxis(a, axis, 0)
        inner = [a[1] - a[0], *((a[k + 1] - a[k - 1]) / 2 for k in range(1, len(a) - 1)), a[-1] - a[-2]]
        return np.moveaxis(np.stack(inner), 0, axis)

    ox, oy = gradient(t, 1), gradient(t, 0)
    oxx, oxy, oyy = gradient(ox, 1), gradient(ox, 0), gradient(oy, 0)
    out = np.zeros_like(e)
    for r in range(height):
        for c in range(width):
            o = math.atan(oyy[r, c] * np.sign(-oxy[r, c]) / (oxx[r, c] + 1e-5)) % math.pi
            keep = True
            for d in (-1, 1):
                x = min(max(c + d * math.cos(o), 0), width - 1.001)
                y = min(max(r + d * math.sin(o), 0), height - 1.001)
                x0, y0 = int(x), int(y)
                value = sum(e[y0 + j, x0 + i] * abs(1 - j - (y - y0)) * abs(1 - i - (x - x0))
                            for j in (0, 1) for i in (0, 1))
                keep = keep and 1.01 * e[r, c] >= value
            frame = np.prod([min(k, 5) / 5 for k in (c, width - 1 - c, r, height - 1 - r)])
            out[r, c] = e[r, c] * keep * frame
    return out


@pytest.mark.parametrize("seed", range(6))
def test_suppression_agrees_with_a_transcription(seed: int) -> None:
    g = np.random.default_rng(seed)
    e = ndimage.gaussian_filter(g.random((26, 31)), seed / 2)
    assert suppress(e) == pytest.approx(plainly_suppressed(e), abs=1e-12)


@pytest.mark.parametrize("tilt", [0.0, 0.3, 1.0, 3.0, 100.0])
def test_suppression_leaves_the_crest_of_a_ridge(tilt: float) -> None:
    """A ridge along x = tilt * y: what is left lies on it, and hardly a row or column is without."""
    y, x = np.mgrid[-20:21, -20:21]
    away = (x - tilt * y) / math.hypot(1, tilt)
    kept = suppress(np.exp(-((away / 3) ** 2))) > 0.1
    assert (abs(away[kept]) < 1.2).all() and kept.sum() >= 35
    assert not kept[0].any() and not kept[:, -1].any()


def test_suppression_cannot_see_exactly_horizontal_lines() -> None:
    """As the original: the sign of the mixed derivative decides, and is 0 where a map does not change along x."""
    ridge = np.exp(-((np.mgrid[-20:21, -20:21][0] / 3) ** 2))
    assert (suppress(ridge)[6:-6, 6:-6] == ridge[6:-6, 6:-6]).all()


# -- matching ------------------------------------------------------------------------------------------------


class Correspondence(NamedTuple):
    """What was matched: two maps with equally many pixels, and the sum of distances in hundredths of a pixel."""

    prediction: np.ndarray
    truth: np.ndarray
    cost: int


def correspond(prediction: np.ndarray, truth: np.ndarray, max_dist: float) -> Correspondence:
    """Match predicted with true pixels one to one: a maximum-cardinality matching of least total distance.

    Args:
        prediction, truth: thin maps of one size.
        max_dist: pixels farther apart than this fraction of the diagonal are no pair.
    """
    rows, columns = (np.flatnonzero(mask).astype(np.int32) for mask in (prediction, truth))
    graph = connect(rows, columns, prediction.shape, reach(prediction.shape, max_dist))
    row_mates, cost = match_all(graph)
    found = Correspondence(np.zeros(prediction.shape, bool), np.zeros(truth.shape, bool), int(cost))
    found.prediction.flat[rows[row_mates >= 0]] = True
    found.truth.flat[columns[row_mates[row_mates >= 0]]] = True
    return found


def match_all(graph: Graph) -> tuple[np.ndarray, int]:
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


def brute_force(prediction: np.ndarray, truth: np.ndarray, radius: float) -> tuple[int, int]:
    """Most pairs and their least total cost, from the dense matrix of all distances."""
    rows, columns = np.argwhere(prediction), np.argwhere(truth)
    if not len(rows) or not len(columns):
        return 0, 0
    squared = ((rows[:, None] - columns) ** 2).sum(-1)
    cost = np.rint(100 * np.sqrt(squared)).astype(int)
    near = squared <= radius**2
    i, j = linear_sum_assignment(np.where(near, cost, 10**7))  # a pair out of reach costs more than all others
    real = near[i, j]
    return int(real.sum()), int(cost[i, j][real].sum())


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 6), st.booleans())
def test_matching_is_optimal(seed: int, radius: float, thinned: bool) -> None:
    prediction = random_map(seed)
    truth = random_map(seed + 1, prediction.shape)
    if thinned:
        prediction, truth = thin(prediction), thin(truth)
    radius = max(radius, 0)
    max_dist = radius / math.hypot(*truth.shape)
    found = correspond(prediction, truth, max_dist)
    assert not (found.prediction & ~prediction).any() and not (found.truth & ~truth).any()
    assert found.prediction.sum() == found.truth.sum()
    pairs, cost = brute_force(prediction, truth, max_dist * math.hypot(*truth.shape))
    assert (found.prediction.sum(), found.cost) == (pairs, cost)


@few
@given(st.integers(0, 10**6), st.integers(1, 4))
def test_counts_over_thresholds_agree_with_single_matchings(seed: int, annotators: int) -> None:
    g = np.random.default_rng(seed)
    size = tuple(g.integers(6, 24, 2))
    prediction = np.rint(20 * g.random(size)) / 20
    truths = [thin(random_map(seed + k, size)) for k in range(annotators)]
    kind = BenchmarkSettings("test", 3 / math.hypot(*size), (0.2, 0.5, 0.51, 0.9), False, bool(seed % 2), False, "zero")
    counts = count_matches(prediction, truths, kind)
    for threshold, row in zip(kind.thresholds, counts, strict=True):
        mask = thin(prediction > threshold if kind.strict else prediction >= threshold)
        found = [correspond(mask, truth, kind.max_dist) for truth in truths]
        assert row.tolist() == [sum(f.truth.sum() for f in found), sum(truth.sum() for truth in truths),
                                np.any([f.prediction for f in found], axis=0).sum(), mask.sum()]


@few
@given(st.integers(0, 10**6), st.floats(0, 0.1))
def test_a_map_matches_itself_at_any_tolerance(seed: int, max_dist: float) -> None:
    mask = thin(random_map(seed))
    found = correspond(mask, mask, max_dist)
    assert np.array_equal(found.prediction, mask) and np.array_equal(found.truth, mask) and found.cost == 0


@pytest.mark.parametrize("shift", range(8))
def test_a_shifted_map_is_matched_up_to_the_tolerance(shift: int) -> None:
    """The diagonal is 50 pixels, the tolerance 4."""
    line = points((30, 40), *((10, x) for x in range(40)))
    found = correspond(np.roll(line, shift, 0), line, 0.08)
    assert found.prediction.sum() == (40 if shift <= 4 else 0)
    assert found.cost == (4000 * shift if shift <= 4 else 0)


def test_one_pixel_matches_one_of_two() -> None:
    found = correspond(points((30, 40), (10, 10)), points((30, 40), (10, 8), (10, 11)), 0.08)
    assert found.truth.sum() == 1 and found.truth[10, 11] and found.cost == 100


def test_an_exchange_makes_room() -> None:
    """The nearest pair alone would leave the other prediction without a partner."""
    found = correspond(points((30, 40), (5, 5), (5, 2)), points((30, 40), (5, 4), (5, 7)), 0.04)
    assert found.prediction.sum() == found.truth.sum() == 2 and found.cost == 400


def test_a_long_chain_of_exchanges() -> None:
    """Every pixel moves by one so that the last one finds a place."""
    prediction = points((3, 300), *((1, x) for x in range(0, 298)))
    truth = points((3, 300), *((1, x) for x in range(1, 299)))
    found = correspond(prediction, truth, 1.01 / math.hypot(3, 300))
    assert found.prediction.sum() == 298 and found.cost == 29800


def test_precision_takes_the_nearest_for_every_annotator() -> None:
    """Three annotators with the same pixel match the same, nearer prediction; the other one stays wrong."""
    size = (30, 40)
    prediction = points(size, (5, 9), (5, 14)).astype(float)
    kind = protocol("bsds", thresholds=1, max_dist=0.08)
    assert count_matches(prediction, [points(size, (5, 12))] * 3, kind).tolist() == [[3, 3, 1, 2]]
    assert count_matches(prediction, [points(size, (5, 12)), points(size, (5, 11))], kind).tolist() == [[2, 2, 2, 2]]


def test_empty_maps() -> None:
    empty, line = np.zeros((8, 9), bool), points((8, 9), (3, 3), (3, 4))
    for prediction, truth in ((empty, empty), (line, empty), (empty, line)):
        found = correspond(prediction, truth, 0.1)
        assert not found.prediction.any() and not found.truth.any() and found.cost == 0
    kind = protocol("bsds", thresholds=2)
    assert count_matches(empty.astype(float), [line, empty], kind).tolist() == [[0, 2, 0, 0]] * 2
    assert count_matches(line.astype(float), [empty], kind).tolist() == [[0, 0, 0, 2]] * 2
