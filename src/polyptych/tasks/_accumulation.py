"""Over what a metric is computed before it is averaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from polyptych.metrics._base import Averaged, Metric

Accumulation = Literal["global", "image", "batch"]


def accumulated(make: Callable[[], Metric], over: Accumulation) -> Metric:
    """``global``: all pixels of the set count equally. ``image`` and ``batch``: the metric of every image or
    batch by itself, then their mean, as some protocols have it; the latter depends on the batch size."""
    return make() if over == "global" else Averaged(make, over)
