"""The arithmetic of a comparison: means with intervals over seeds, delta_mtl, and mean rank.

**Interval.** Seeds are few, so a mean over n of them comes with Student's t: half the width of the two-sided 95 %
confidence interval is ``t(0.975, n - 1) * s / sqrt(n)`` with the sample deviation ``s``. It covers the true mean in
95 % of experiments where the seeds' values are normal. It says how far another set of *seeds* would move the mean on
the same test images; it says nothing about other images. One seed has no interval.

**delta_mtl** (Maninis, Radosavovic and Kokkinos, CVPR 2019, arXiv 1904.08918; Vandenhende et al., TPAMI 2021, arXiv
2004.13379): ``100/T * sum_t sign_t * (M_t - S_t) / |S_t|`` over the headline metrics of T tasks, with sign -1 where
lower is better and S the single-task reference. In percent, higher is better. It is *paired by seed*: every seed is
compared with the reference of the same seed, which saw the same images in the same order, and mean and interval are
taken over these differences.

**Mean rank.** For each task the rows of the table are ranked by their mean headline (1 is best, ties share the
average of their ranks); the mean over tasks depends on which rows are in the table, so it is never compared across
tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: NaN where no seed has a value.
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
