"""Over which images values are computed before they are averaged, and how the name of a number shows it.

A file of its own because lists of protocols and reports read it without loading torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Accumulation = Literal["global", "image", "batch", "batch_weighted"]
"""``global``: no averaging, all pixels of the set count equally. ``image``: mean over images. ``batch``: mean over
batches with equal weights, so that the result depends on the batch size and overweights a short last batch.
``batch_weighted``: mean over batches, weighted by their numbers of images."""

_SUFFIXES: Mapping[str, str] = {"global": "", "image": "_per_image", "batch": "_per_batch",
                                "batch_weighted": "_per_weighted_batch"}


def number_name(metric: str, accumulation: str) -> str:
    """``RMSE``, or ``RMSE_per_image``: the name of a number shows how it was accumulated, unless globally."""
    return metric + _SUFFIXES[accumulation]


def metric_name(number: str, accumulation: str) -> str:
    """The inverse of :func:`number_name`; a number whose accumulation is not recorded keeps its name."""
    return number.removesuffix(_SUFFIXES.get(accumulation, ""))


def shown_name(number: str) -> str:
    """``pixel accuracy per image``: the name of a number as people read it. Files keep ``pixel_accuracy_per_image``."""
    return number.replace("_", " ")
