"""The arithmetic of a comparison: means with intervals over seeds, delta_mtl, tests, groups, and ranks.

**Interval.** Seeds are few, so a mean over n of them comes with Student's t: half the width of the two-sided 95%
confidence interval is ``t(0.975, n - 1) * s / sqrt(n)`` with the sample deviation ``s``. It covers the true mean in
95% of experiments where the seeds' values are normal. It shows how far another set of *seeds* would move the mean on
the same test images; it says nothing about other images. One seed has no interval.

**delta_mtl** (Maninis, Radosavovic and Kokkinos, CVPR 2019, arXiv 1904.08918; Vandenhende et al., TPAMI 2021, arXiv
2004.13379): ``100/T * sum_t sign_t * (M_t - S_t) / |S_t|`` over the headline metrics of T tasks, with sign -1 where
lower is better and S the single-task reference. In percent, higher is better. It is *paired by seed*: every seed is
compared with the reference of the same seed, which saw the same images in the same order, and mean and interval are
taken over these differences.

**Test.** A row differs from the reference if the mean of its paired differences is not 0 by Student's t test. A table
of many rows would find such differences by chance, so the p values are corrected together by Holm's step-down procedure
(Scandinavian Journal of Statistics 6, 1979): whatever the truth, the probability of a single false finding in the whole
table is at most 5%.

**Groups.** Rows that share a letter cannot be told apart. All pairs are compared by Tukey's test in a design with seeds
as blocks: the spread of rows around their seed's level is pooled over the table. This estimates it better than the few
seeds of two rows would, but assumes that it is equal in all rows.

**Smallest difference.** A difference that a table fails to show may still exist. With the measured spread, the test
finds a true difference of this size in four of five repetitions.

**Images.** Seeds say nothing about other test images. The deviation over resampled test sets
(:mod:`polyptych.metrics._resampling`) shows how far the mean difference would move if other images had been collected,
and is printed next to the interval over seeds.

**Mean rank.** For each task the rows of the table are ranked by their mean headline (1 is best, ties share the
average of their ranks); the mean over tasks depends on which rows are in the table, so it is never compared across
tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from string import ascii_lowercase, ascii_uppercase

import numpy as np
from scipy import optimize, stats

CONFIDENCE = 0.95
POWER = 0.8


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: the mean; NaN if no seed has a value.
        half_width: half the confidence interval; None with one seed.
        by_seed: the values.
    """

    mean: float
    half_width: float | None
    by_seed: dict[int, float]

    @staticmethod
    def of(by_seed: Mapping[int, float]) -> Estimate:
        """Mean and interval. A seed without a finite value (NaN: nothing to measure) makes both NaN or absent: a
        mean over the seeds that happen to work would flatter."""
        values = list(by_seed.values())
        mean = math.fsum(values) / len(values) if values else math.nan
        return Estimate(mean, half_width(values) if math.isfinite(mean) else None, dict(by_seed))


def half_width(values: Sequence[float], confidence: float = CONFIDENCE) -> float | None:
    """Half the two-sided Student t interval of the mean; None for fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    return float(stats.t.ppf((1 + confidence) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


def deltas(values: Mapping[str, float], reference: Mapping[str, float],
           higher_is_better: Mapping[str, bool]) -> dict[str, float]:
    """The relative gain over the reference by task, in percent, positive where better; NaN where the reference is 0.
    It is relative to the size of the reference: dividing by a negative one would turn better into worse."""
    return {task: (100 if higher_is_better[task] else -100) * (value - reference[task]) / abs(reference[task])
            if reference[task] else math.nan for task, value in values.items()}


def delta_mtl(values: Mapping[str, float], reference: Mapping[str, float],
              higher_is_better: Mapping[str, bool]) -> float:
    """The mean of :func:`deltas` over tasks, in percent, higher is better."""
    by_task = deltas(values, reference, higher_is_better)
    return math.fsum(by_task.values()) / len(by_task)


def p_value(differences: Sequence[float]) -> float | None:
    """The p value of the two-sided t test that the mean of paired differences is 0; None for fewer than two
    differences, or if one is not a number."""
    if len(differences) < 2 or not all(map(math.isfinite, differences)):
        return None
    mean, deviation = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if deviation == 0:
        return 1.0 if mean == 0 else 0.0
    n = len(differences)
    return float(2 * stats.t.sf(abs(mean) / deviation * math.sqrt(n), n - 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p values corrected for multiple tests: the k-th smallest of m is multiplied by m - k + 1, and none is smaller
    than the one before it. None stays None and does not count."""
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        # Never below the one before: otherwise a larger p value could pass where a smaller one failed.
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        corrected[index] = largest
    return corrected


def smallest_detectable(differences: Sequence[Sequence[float]], confidence: float = CONFIDENCE,
                        power: float = POWER) -> float | None:
    """The mean difference that the strictest step of Holm's procedure finds with that probability.

    Args:
        differences: differences of every row to the reference, by seed; their deviation is pooled over rows.
    """
    rows = [row for row in differences if len(row) > 1 and all(map(math.isfinite, row))]
    if not rows:
        return None
    n = min(map(len, rows))
    deviation = math.sqrt(float(np.mean([np.var(row, ddof=1) for row in rows])))
    # Holm's first step divides the level by the number of rows; a difference found there is found in any order.
    critical = stats.t.ppf(1 - (1 - confidence) / (2 * len(rows)), n - 1)

    def lacking(shift: float) -> float:
        """Of the power at that many standard errors; the far tail adds nothing."""
        return power - float(stats.nct.sf(critical, n - 1, shift))

    shift = optimize.brentq(lacking, 0, 10 * critical)
    return float(shift * deviation / math.sqrt(n))


def groups(table: Sequence[Mapping[int, float]], confidence: float = CONFIDENCE) -> list[str]:
    """Letters for every row: two rows that share one do not differ significantly (``a`` includes the highest mean).

    Args:
        table: for every row, its values by seed. Only seeds that all rows have are used; there are no letters for
            fewer than two rows or seeds.
    """
    seeds = [seed for seed in (table[0] if table else ()) if all(seed in row for row in table)]
    values = np.array([[row[seed] for seed in seeds] for row in table], dtype=float)
    if len(table) < 2 or len(seeds) < 2 or not np.isfinite(values).all():
        return [""] * len(table)
    # A two-way analysis of variance: what a seed does to every row alike (an easy initialization) is taken out first.
    # Left in, it would count as noise and hide differences that all seeds agree on.
    rest = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    freedom = (len(table) - 1) * (len(seeds) - 1)
    error = math.sqrt(float((rest**2).sum()) / freedom / len(seeds))
    # The range of all means, not a t test of each pair: with many rows some pair would differ by chance alone.
    limit = _tukey(confidence, len(table), freedom) * error
    means = values.mean(1)
    order = np.argsort(-means, kind="stable")
    letters, last = [""] * len(table), -1
    name = iter(ascii_lowercase + ascii_uppercase)
    for start in range(len(order)):
        # The rows from this one on that are near enough; a group within the one before it is not news.
        end = max(place for place in range(start, len(order)) if means[order[start]] - means[order[place]] <= limit)
        if end > last:
            letter, last = next(name, "?"), end
            for place in range(start, end + 1):
                letters[order[place]] += letter
    return letters


@cache
def _tukey(confidence: float, rows: int, freedom: int) -> float:
    """How many standard errors the range of so many means may span; an integral, which takes most of a second."""
    return float(stats.studentized_range.ppf(confidence, rows, freedom))


def ranks(values: Sequence[float], higher_is_better: bool) -> list[float]:
    """The rank of every value; 1 is best, ties share the average, and values that are not finite have rank NaN."""
    found = np.full(len(values), math.nan)
    whole = [index for index, value in enumerate(values) if math.isfinite(value)]
    if whole:
        found[whole] = stats.rankdata([(-1 if higher_is_better else 1) * values[index] for index in whole])
    return [float(rank) for rank in found]


def mean_ranks(table: Sequence[Mapping[str, float]], higher_is_better: Mapping[str, bool]) -> list[float]:
    """The mean rank of every row.

    Args:
        table: for every row its headline values by task; a row that lacks a finite value has rank NaN and does not
            take part.
    """
    whole = [index for index, row in enumerate(table)
             if all(math.isfinite(row.get(task, math.nan)) for task in higher_is_better)]
    ranks = np.full(len(table), math.nan)
    if whole:
        by_task = [stats.rankdata([(-1 if higher else 1) * table[index][task] for index in whole])
                   for task, higher in higher_is_better.items()]
        ranks[whole] = np.mean(by_task, axis=0)
    return [float(rank) for rank in ranks]
