"""Scores from counts worked out by hand, the protocols, streaming, and the benchmark's own files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from polyptych.errors import InputError
from polyptych.metrics._boundary_benchmark.counts import count_matches
from polyptych.metrics._boundary_benchmark.curve import Curve, average_precision, harmonic, trace
from polyptych.metrics._boundary_benchmark.protocols import PROTOCOLS, protocol
from polyptych.metrics._boundary_benchmark.thinning import thin
from polyptych.metrics.boundary_benchmark import BoundaryBenchmark, evaluate_folders


def curve(recall: list[float], precision: list[float]) -> Curve:
    r, p = np.array(recall), np.array(precision)
    return Curve(r, p, harmonic(r, p))


def example(seed: int, size: tuple[int, int] = (40, 50), annotators: int = 2) -> tuple[np.ndarray, list[np.ndarray]]:
    g = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(g.standard_normal(size), 3)
    edges = [thin(abs(field + 0.02 * ndimage.gaussian_filter(g.standard_normal(size), 1)) < 0.02)
             for _ in range(annotators)]
    return np.clip(1 - 12 * abs(field) + 0.1 * g.standard_normal(size), 0, 1), edges


# -- aggregation ---------------------------------------------------------------------------------------------

# cntR, sumR, cntP, sumP of two images at t = 1/4, 1/2, 3/4
COUNTS = np.array([[[8, 10, 8, 20], [6, 10, 6, 8], [2, 10, 2, 2]],
                   [[9, 10, 9, 10], [5, 10, 5, 5], [1, 10, 1, 2]]])


def test_scores_of_counts() -> None:
    benchmark = BoundaryBenchmark(protocol("bsds", thresholds=3))
    for name, counts in zip("ab", COUNTS, strict=True):
        benchmark.add_counts(counts, name)
    # recall 17/20, 11/20, 3/20; precision 17/30, 11/13, 3/4; F 0.68, 2/3, 1/4
    assert benchmark.curve().F.tolist() == pytest.approx([0.68, 2 / 3, 0.25])
    found = benchmark.compute()
    assert (found["odsF"], found["ods_threshold"]) == (pytest.approx(0.68), 0.25)
    assert (found["ods_recall"], found["ods_precision"]) == pytest.approx((17 / 20, 17 / 30))
    # best of a: F 16/30, 12/18, 4/12, so the second; of b: the first. Together 15 of 20 and 15 of 18.
    assert (found["oisF"], found["ois_recall"], found["ois_precision"], found["ois_threshold"]) == pytest.approx(
        (30 / 38, 15 / 20, 15 / 18, 0.375))
    assert {name: b.threshold for name, b in benchmark.best_of_images().items()} == {"a": 0.5, "b": 0.25}
    # Between the first two thresholds recall falls and precision rises on straight lines, and F has a maximum.
    share = np.linspace(0, 1, 100)
    r, p = 17 / 20 + share * (11 / 20 - 17 / 20), 17 / 30 + share * (11 / 13 - 17 / 30)
    assert found["odsF_interpolated"] == pytest.approx((2 * r * p / (r + p)).max())
    assert found["odsF_interpolated"] > found["odsF"] + 0.01 and 0.25 < found["ods_interpolated_threshold"] < 0.5


def test_the_first_of_equal_thresholds_wins() -> None:
    benchmark = BoundaryBenchmark(protocol("bsds", thresholds=3))
    benchmark.add_counts(np.array([[1, 4, 1, 4], [2, 4, 2, 4], [2, 4, 2, 4]]), "a")
    found = benchmark.compute()
    assert found["ods_threshold"] == found["ois_threshold"] == 0.5


def test_average_precision_of_a_truncated_curve() -> None:
    """Recalls 0.20, 0.21, ..., 0.40 are covered, where precision falls from 1 to 0.5; all others count as 0."""
    assert average_precision(curve([0.4, 0.2], [0.5, 1.0])) == pytest.approx(21 * 0.75 / 100)
    assert average_precision(curve([1.0, 0.0], [1.0, 1.0])) == pytest.approx(1.01)
    # Of equal recalls the lowest threshold stands for all.
    assert average_precision(curve([0.4, 0.2, 0.2], [0.5, 1.0, 0.0])) == pytest.approx(21 * 0.75 / 100)


@pytest.mark.parametrize(("empty", "no_truth", "no_prediction"), [("zero", (0, 0), (0, 0)), ("one", (1, 0), (0, 1))])
def test_empty_sides(empty: str, no_truth: tuple[int, int], no_prediction: tuple[int, int]) -> None:
    found = trace(np.array([[0, 0, 0, 7], [0, 7, 0, 0], [0, 0, 0, 0]]), empty)
    assert (found.recall[0], found.precision[0]) == no_truth
    assert (found.recall[1], found.precision[1]) == no_prediction
    assert not found.F.any()


# -- protocols -----------------------------------------------------------------------------------------------


def test_thresholds_of_the_protocols() -> None:
    bsds, seism, survey = (PROTOCOLS[name].thresholds for name in ("bsds", "nyud", "pascal_survey"))
    assert bsds == survey and len(bsds) == 99 and bsds == pytest.approx(np.arange(1, 100) / 100)
    assert len(seism) == 101 and seism[:3] == (0.001, 0.01, 0.02) and seism[-2:] == (0.99, 0.999)
    assert [PROTOCOLS[name].max_dist for name in ("bsds", "nyud", "pascal")] == [0.0075, 0.011, 0.0075]
    assert protocol("nyud", thresholds=3).thresholds == (0.001, 0.5, 0.999)
    assert protocol("bsds", nms=True) == replace(PROTOCOLS["bsds"], nms=True)


def test_on_or_above_a_threshold() -> None:
    line = np.zeros((20, 30), bool)
    line[10] = True
    on = np.where(line, 0.5, 0)
    for strict, expected in ((False, 30), (True, 0)):
        kind = replace(protocol("bsds", thresholds=1), strict=strict)
        assert count_matches(on, [line], kind)[0].tolist() == [expected, 30, expected, expected]


def test_truth_is_thinned_where_the_protocol_says_so() -> None:
    band = np.zeros((20, 30), bool)
    band[9:12] = True
    for name, sum_r in (("bsds", 90), ("pascal_survey", thin(band).sum())):
        assert count_matches(band.astype(float), [band], protocol(name, thresholds=1))[0, 1] == sum_r
    assert thin(band).sum() < 40


def test_suppression_makes_the_protocols_differ() -> None:
    prediction, truths = example(3, annotators=1)
    with_nms = count_matches(prediction, truths, protocol("pascal", thresholds=9))
    without = count_matches(prediction, truths, protocol("pascal", thresholds=9, nms=False))
    assert not np.array_equal(with_nms, without)
    assert np.array_equal(without[:, 1], with_nms[:, 1])


# -- streaming -----------------------------------------------------------------------------------------------


def test_a_perfect_prediction() -> None:
    _, truths = example(0, annotators=1)
    benchmark = BoundaryBenchmark("bsds")
    benchmark.add(truths[0].astype(np.float32), truths)
    found = benchmark.compute()
    assert [found[key] for key in ("odsF", "ods_recall", "ods_precision", "oisF", "odsF_interpolated")] == [1] * 5
    assert found["ods_threshold"] == benchmark.thresholds[0]


def test_merged_benchmarks_are_one() -> None:
    whole, parts = BoundaryBenchmark("bsds"), [BoundaryBenchmark("bsds") for _ in range(2)]
    for seed in range(4):
        for benchmark in (whole, parts[seed % 2]):
            benchmark.add(*example(seed), name=str(seed))
    parts[1].merge(parts[0])
    assert parts[1].compute() == whole.compute() and sorted(parts[1].names) == whole.names
    assert 0 < whole.compute()["odsF"] <= whole.compute()["odsF_interpolated"] < 1


def test_binary_maps_for_every_threshold() -> None:
    kind = protocol("bsds", thresholds=4)
    prediction, truths = example(1)
    soft, binary = BoundaryBenchmark(kind), BoundaryBenchmark(kind)
    soft.add(prediction, truths)
    binary.add(np.stack([prediction >= t for t in kind.thresholds]), truths)
    assert soft.compute() == binary.compute()


def test_nothing_seen_is_nan() -> None:
    assert all(np.isnan(value) for value in BoundaryBenchmark("nyud").compute().values())


def test_refusals() -> None:
    prediction, truths = example(0)
    benchmark = BoundaryBenchmark("bsds")
    for bad, truth, message in (
            (prediction[1:], truths, "b1: got a prediction of 39x50 pixels; needs the size of its ground truth, 40x50"),
            (prediction * 2, truths, "b1: got values outside of 0 to 1"),
            (np.full((40, 50), np.nan), truths, "b1: got values outside of 0 to 1"),
            (prediction, [], "b1: got no map of true boundaries"),
            (np.zeros((3, 40, 50), bool), truths, "b1: got 3 binary maps; needs 99")):
        with pytest.raises(InputError, match=message):
            benchmark.add(bad, truth, name="b1")
    assert not benchmark.counts
    with pytest.raises(InputError, match=r"got those of 'nyud' and 'bsds'"):
        benchmark.merge(BoundaryBenchmark("nyud"))
    for options, message in (({"name": "bsd"}, "nearest: bsds"), ({"name": "bsds", "thresholds": 0}, "needs 1 or more"),
                             ({"name": "nyud", "thresholds": 2}, "needs 3 or more"),
                             ({"name": "bsds", "max_dist": float("nan")}, "max_dist: got nan")):
        with pytest.raises(InputError, match=message):
            protocol(**options)


# -- the benchmark's own self-test ---------------------------------------------------------------------------

# Four of its runs measure the same five images, read from three kinds of files. Its matching depends on the clock, so
# the four files differ by up to 0.0011 for an image and by up to 0.0007 for a threshold.
RUNS = {1: "ucm2", 2: "png", 3: "segs", 4: "segs"}
NAMES = ["2018", "3063", "5096", "6046", "8068"]
TOLERANCE = 5e-4


@pytest.fixture(scope="module")
def bsds(real_data) -> Path:
    root = real_data / "bsds500_small"
    if not root.is_dir():
        pytest.skip(f"no self-test of BSDS500 at {root}")
    return root


@pytest.fixture(scope="module")
def measured(bsds) -> dict[str, BoundaryBenchmark]:
    return {kind: evaluate_folders(bsds / kind, bsds / "groundTruth", protocol("bsds", thresholds=5), workers=1)
            for kind in set(RUNS.values())}


@pytest.mark.data
@pytest.mark.parametrize("run", RUNS)
def test_scores_of_bsds(bsds, measured, run: int) -> None:
    """threshold, recall, precision, F of ODS; recall, precision, F of OIS; AP"""
    found = measured[RUNS[run]].compute()
    keys = ("ods_interpolated_threshold", "ods_recall", "ods_precision", "odsF_interpolated", "ois_recall",
            "ois_precision", "oisF", "AP")
    assert [found[key] for key in keys] == pytest.approx(np.loadtxt(bsds / f"test_{run}/eval_bdry.txt"), abs=TOLERANCE)


@pytest.mark.data
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("file", ["eval_bdry_thr.txt", "eval_bdry_img.txt"])
def test_tables_of_bsds(bsds, measured, run: int, file: str) -> None:
    """Every figure is within the tolerance of the range of the official runs."""
    official = np.stack([np.loadtxt(bsds / f"test_{k}" / file)[:, -3:] for k in RUNS])
    benchmark = measured[RUNS[run]]
    ours = np.stack(benchmark.curve(), 1) if "thr" in file else np.array(
        [best[1:] for best in benchmark.best_of_images().values()])
    assert (ours >= official.min(0) - TOLERANCE).all() and (ours <= official.max(0) + TOLERANCE).all()
    thresholds = np.loadtxt(bsds / f"test_{run}" / file)[:, -4]
    expected = benchmark.thresholds if "thr" in file else [b.threshold for b in benchmark.best_of_images().values()]
    assert thresholds == pytest.approx(np.array(expected), abs=1e-6)


@pytest.mark.data
@pytest.mark.parametrize("run", RUNS)
def test_totals_of_bsds(bsds, measured, run: int) -> None:
    """Official recalls and precisions, printed with six digits, are fractions of exactly our totals of pixels."""
    benchmark = measured[RUNS[run]]
    by_threshold = np.loadtxt(bsds / f"test_{run}/eval_bdry_thr.txt")[:, 1:3]
    totals = np.sum(benchmark.counts, axis=0)[:, [1, 3]]
    by_image = np.loadtxt(bsds / f"test_{run}/eval_bdry_img.txt")[:, 2:4]
    best = [benchmark.thresholds.tolist().index(b.threshold) for b in benchmark.best_of_images().values()]
    own = np.stack([counts[k, [1, 3]] for counts, k in zip(benchmark.counts, best, strict=True)])
    for shares, sums in ((by_threshold, totals), (by_image, own)):
        matched = shares * sums
        assert (abs(matched - np.rint(matched)) <= 5.1e-7 * sums).all()
        assert not (abs(shares * (sums + 1) - np.rint(shares * (sums + 1))) <= 5.1e-7 * sums).all()


@pytest.mark.data
def test_counts_of_bsds(measured) -> None:
    """cntR, sumR, sumP at the first threshold, as another exact matcher finds them."""
    expected = {"2018": [9251, 14318, 2808], "5096": [9113, 19298, 1971], "6046": [8140, 17035, 2104],
                "8068": [8369, 9616, 2642]}
    for benchmark in measured.values():
        assert benchmark.names == NAMES
        found = dict(zip(NAMES, benchmark.counts, strict=True))
        assert {name: found[name][0, [0, 1, 3]].tolist() for name in expected} == expected
        assert found["3063"][3, 0] / found["3063"][3, 1] == pytest.approx(0.597207, abs=5e-7)


@pytest.mark.data
def test_regions_of_a_contour_map_have_its_contours(bsds, measured) -> None:
    found = evaluate_folders(bsds / "ucm2", bsds / "groundTruth", protocol("bsds", thresholds=5), ucm="partition",
                             workers=1)
    assert np.array_equal(found.counts, measured["ucm2"].counts)
