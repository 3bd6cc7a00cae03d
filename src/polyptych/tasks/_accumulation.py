"""Over what a metric is computed before it is averaged."""

from __future__ import annotations

from collections.abc import Callable

from polyptych.metrics._accumulation import Accumulation
from polyptych.metrics._base import Averaged, Metric

__all__ = ["Accumulation", "accumulated"]


def accumulated(make: Callable[[], Metric], over: Accumulation) -> Metric:
    """``global``: all pixels of the set count equally. ``image`` and ``batch``: the metric of every image or
    batch by itself, then their mean, as some protocols have it; see
    :data:`polyptych.metrics._accumulation.Accumulation`."""
    return make() if over == "global" else Averaged(make, over)
