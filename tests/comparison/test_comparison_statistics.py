"""The arithmetic: against closed forms, a simulation, and the rows that papers print."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from polyptych.comparison.statistics import (
    Estimate,
    delta_mtl,
    deltas,
    groups,
    half_width,
    holm,
    mean_ranks,
    p_value,
    ranks,
    smallest_detectable,
)


def test_half_width_is_that_of_the_t_test() -> None:
    values = [41.2, 40.1, 42.7, 40.9]
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert half_width(values) == pytest.approx((high - low) / 2, rel=1e-12)
    mean = Estimate.of(dict(enumerate(values))).mean
    assert (low, high) == pytest.approx((mean - half_width(values), mean + half_width(values)))


def test_half_width_with_two_seeds_by_hand() -> None:
    # t(0.975, 1) = tan(0.475 pi); the sample deviation of {0, 2} is sqrt(2), over sqrt(2) seeds.
    assert half_width([0.0, 2.0]) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-10)


def test_one_seed_has_no_interval() -> None:
    assert half_width([3.0]) is None and Estimate.of({7: 3.0}) == Estimate(3.0, None, {7: 3.0})


@pytest.mark.parametrize("n", [2, 3, 5])
def test_the_interval_covers_the_mean_in_95_of_100_experiments(n: int) -> None:
    draws = np.random.default_rng(n).normal(10, 3, (2000, n))
    covered = np.mean([abs(row.mean() - 10) <= half_width(row.tolist()) for row in draws])
    assert covered == pytest.approx(0.95, abs=0.015)  # three standard errors of the count
    normal = np.mean(abs(draws.mean(1) - 10) <= 1.96 * draws.std(1, ddof=1) / math.sqrt(n))
    assert normal < 0.93  # what the normal quantile would give with few seeds


def test_a_seed_without_a_value_is_not_left_out_of_the_mean() -> None:
    estimate = Estimate.of({0: 1.0, 1: math.nan})
    assert math.isnan(estimate.mean) and estimate.half_width is None


# Published delta_mtl: headline metrics, single-task row, method row, printed value.
AUTO_LAMBDA = (["semseg", "depth", "normals"], [43.37, 52.24, 22.40], [True, False, False])
ASTMT = (["semseg", "parts", "saliency", "normals", "boundaries"], [68.30, 60.70, 65.40, 14.61, 72.7],
         [True, True, True, False, True])
SURVEY_PASCAL = (ASTMT[0], [66.2, 59.9, 66.3, 13.9, 68.8], ASTMT[2])
SURVEY_NYUD = (["semseg", "depth"], [43.9, 0.585], [True, False])
MTI_NET = (["semseg", "depth"], [33.18, 0.667], [True, False])
PUBLISHED = [
    (AUTO_LAMBDA, [44.64, 43.32, 24.48], 3.57), (AUTO_LAMBDA, [45.14, 43.06, 24.17], 4.58),
    (AUTO_LAMBDA, [45.15, 42.38, 24.13], 5.09), (AUTO_LAMBDA, [45.98, 41.26, 24.09], 6.50),
    (AUTO_LAMBDA, [46.14, 41.91, 23.52], 7.05), (AUTO_LAMBDA, [47.17, 40.97, 23.68], 8.21),
    (AUTO_LAMBDA, [48.26, 39.82, 22.81], 11.07),
    (ASTMT, [63.20, 55.10, 63.60, 16.04, 69.2], -6.81), (ASTMT, [68.00, 61.12, 65.71, 14.68, 72.4], -0.04),
    (SURVEY_PASCAL, [63.8, 58.6, 65.1, 14.9, 69.2], -2.86), (SURVEY_PASCAL, [63.7, 58.9, 65.4, 14.8, 69.6], -2.39),
    (SURVEY_PASCAL, [66.1, 60.6, 66.8, 13.9, 69.9], 0.60),
    (SURVEY_NYUD, [44.4, 0.587], 0.41), (SURVEY_NYUD, [45.0, 0.584], 1.32), (SURVEY_NYUD, [44.2, 0.570], 1.61),
    (MTI_NET, [32.09, 0.668], -1.71), (MTI_NET, [35.12, 0.620], 6.40), (MTI_NET, [37.49, 0.607], 10.91),
]


@pytest.mark.parametrize(("single", "method", "printed"), PUBLISHED)
def test_delta_mtl_of_published_rows(single: tuple, method: list[float], printed: float) -> None:
    tasks, reference, higher = single
    found = delta_mtl(dict(zip(tasks, method, strict=True)), dict(zip(tasks, reference, strict=True)),
                      dict(zip(tasks, higher, strict=True)))
    # Rows are printed with three or four digits, and papers computed with more.
    assert found == pytest.approx(printed, abs=0.12)


CAGRAD_STL = [38.30, 63.76, .6754, .2780, 25.01, 19.21, 30.14, 57.20, 69.15]
CAGRAD_HIGHER = [True, True, False, False, False, False, True, True, True]


@pytest.mark.parametrize(("row", "printed"), [
    ([39.29, 65.33, .5493, .2263, 28.15, 23.96, 22.09, 47.50, 61.08], 5.59),
    ([30.47, 59.90, .6070, .2555, 24.88, 19.45, 29.18, 56.88, 69.36], 1.38),
    ([40.13, 65.93, .5261, .2171, 25.26, 20.08, 28.40, 55.47, 68.15], -4.04),
    ([40.82, 66.33, .5300, .2200, 25.19, 19.71, 28.88, 56.23, 68.54], -4.93),
])
def test_the_same_arithmetic_over_single_metrics_is_delta_m(row: list[float], printed: float) -> None:
    """Delta-m of the CAGrad line of work: nine metrics instead of one per task, and lower is better."""
    def named(values: list) -> dict:
        return {str(index): value for index, value in enumerate(values)}

    found = -delta_mtl(named(row), named(CAGRAD_STL), named(CAGRAD_HIGHER))
    assert found == pytest.approx(printed, abs=0.165)  # rows are printed rounded


def test_deltas_have_the_sign_of_better() -> None:
    found = deltas({"a": 11.0, "b": 11.0}, {"a": 10.0, "b": 10.0}, {"a": True, "b": False})
    assert found == pytest.approx({"a": 10.0, "b": -10.0})
    assert math.isnan(deltas({"a": 1.0}, {"a": 0.0}, {"a": True})["a"])


def test_mean_rank_shares_ties_and_knows_directions() -> None:
    table = [{"a": 1.0, "b": 3.0}, {"a": 2.0, "b": 3.0}, {"a": 2.0, "b": 1.0}, {"a": math.nan, "b": 0.0}]
    # a (higher is better): 3, 1.5, 1.5; b (lower is better): 2.5, 2.5, 1.
    assert mean_ranks(table, {"a": True, "b": False})[:3] == [2.75, 2.0, 1.25]
    assert math.isnan(mean_ranks(table, {"a": True, "b": False})[3])


def test_a_gain_over_a_negative_reference_is_a_gain() -> None:
    values, directions = {"skill": -1.0, "error": -3.0}, {"skill": True, "error": False}
    assert deltas(values, {"skill": -2.0, "error": -2.0}, directions) == pytest.approx({"skill": 50.0, "error": 50.0})
    assert delta_mtl(values, {"skill": -0.5, "error": -4.0}, directions) == pytest.approx((-100 - 25) / 2)


# -- tests, groups, and what a table can show ------------------------------------------------------------------


def test_the_p_value_is_that_of_the_paired_t_test() -> None:
    method, reference = [41.2, 40.1, 42.7, 40.9, 41.5], [40.1, 40.0, 41.2, 40.5, 41.9]
    differences = [one - other for one, other in zip(method, reference, strict=True)]
    assert p_value(differences) == pytest.approx(stats.ttest_rel(method, reference).pvalue, rel=1e-12)
    # An interval without 0 and a p value below 5% are the same statement.
    for shift in (0.3, 0.5, 0.7, 0.9):
        moved = [value + shift for value in differences]
        estimate = Estimate.of(dict(enumerate(moved)))
        assert (p_value(moved) < 0.05) == (abs(estimate.mean) > estimate.half_width)
    assert p_value([1.0]) is None and p_value([1.0, math.nan]) is None
    assert p_value([2.0, 2.0]) == 0 and p_value([0.0, 0.0]) == 1


def test_holm_by_hand() -> None:
    # 4 * .005, 3 * .01, 2 * .03, then not below the one before: .06 instead of .04.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.4]) == [pytest.approx(0.8), None, pytest.approx(0.8)]
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == [] and holm([0.03]) == [0.03]


def grids(rows: int, seeds: int, times: int, effect: float = 0.0, seed: int = 0) -> np.ndarray:
    """Tables of differences to a reference, which all rows of a table share; the first row has a true effect."""
    draw = np.random.default_rng(seed)
    own, reference = draw.normal(0, 1, (times, rows, seeds)), draw.normal(0, 1, (times, 1, seeds))
    own[:, 0] += effect
    return own - reference


@pytest.mark.parametrize("rows", [3, 12])
def test_a_table_without_any_difference_shows_one_in_at_most_5_of_100(rows: int) -> None:
    tables = grids(rows, 5, 1500)
    plain = [[p_value(row) for row in table.tolist()] for table in tables]
    corrected = np.mean([min(holm(values)) < 0.05 for values in plain])
    assert corrected < 0.05 + 0.015  # three standard errors of the count
    assert np.mean([min(values) < 0.05 for values in plain]) > 0.09  # without the correction


def test_the_smallest_difference_is_found_in_four_of_five_tables() -> None:
    rows, seeds = 4, 5
    expected = smallest_detectable([[-math.sqrt(2), math.sqrt(2), 0.0, math.sqrt(2), -math.sqrt(2)]] * rows)
    deviation = math.sqrt(2)
    assert np.std([-deviation, deviation, 0, deviation, -deviation], ddof=1) == pytest.approx(deviation)
    found = [p_value(table[0].tolist()) < 0.05 / rows for table in grids(rows, seeds, 2000, effect=expected)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)
    assert smallest_detectable([[1.0]]) is None and smallest_detectable([]) is None


def test_groups_are_those_of_tukeys_test() -> None:
    """Without block effects the pooled spread around the rows' means is nearly that of scipy's test."""
    draw = np.random.default_rng(3)
    values = draw.normal([[0.0], [0.1], [2.0], [2.1], [1.0]], 0.5, (5, 8))
    tukey = stats.tukey_hsd(*values).pvalue
    letters = groups([dict(enumerate(row)) for row in values.tolist()])
    for one in range(5):
        for other in range(5):
            assert (tukey[one, other] > 0.05) == bool(set(letters[one]) & set(letters[other])), (one, other)
    assert letters[3][0] == "a" or letters[2][0] == "a"  # the highest mean


def test_letters_by_hand() -> None:
    # Rows at 0, 1 and 2 whose seeds differ by a common level and by +-e: neighbors within the limit share a letter.
    def table(e: float) -> list[dict[int, float]]:
        return [{seed: 10 * seed + row + e * (-1) ** (seed + row) for seed in range(4)} for row in range(3)]

    limit = stats.studentized_range.ppf(0.95, 3, 6)  # q of 3 rows, 2 * 3 degrees of freedom
    rest = np.array([[row[seed] for seed in range(4)] for row in table(1.0)])
    rest = rest - rest.mean(0) - rest.mean(1, keepdims=True) + rest.mean()
    unit = limit * math.sqrt((rest**2).sum() / 6 / 4)
    assert groups(table(0.9 / unit)) == ["c", "b", "a"]
    assert groups(table(1.5 / unit)) == ["b", "ab", "a"]
    assert groups(table(2.1 / unit)) == ["a", "a", "a"]
    assert groups([{0: 1.0}, {0: 2.0}]) == ["", ""] and groups([{0: 1.0, 1: 2.0}]) == [""] and groups([]) == []
    assert groups([{0: 1.0, 1: math.nan}, {0: 1.0, 1: 2.0}]) == ["", ""]


def test_alike_rows_are_told_apart_in_at_most_5_of_100_tables() -> None:
    told = [set(map(frozenset, groups([dict(enumerate(row)) for row in table]))) for table in grids(4, 5, 300).tolist()]
    apart = np.mean([not frozenset.intersection(*found) for found in told])
    assert apart < 0.05 + 0.038


def test_ranks_of_one_task() -> None:
    assert ranks([1.0, 3.0, 3.0], True) == [3.0, 1.5, 1.5] and ranks([1.0, 3.0], False) == [1.0, 2.0]
    assert math.isnan(ranks([1.0, math.nan], True)[1])
