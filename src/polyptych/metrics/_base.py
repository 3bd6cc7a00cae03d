"""A metric is a set of named sums, which add up over batches and processes and determine the result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from polyptych.metrics._accumulation import Accumulation

Part = tuple[Tensor, Tensor, Tensor]
"""Prediction, target and valid of images of one size."""


class Metric(ABC):
    """Streaming accumulator. ``sums`` are float64 (or int64) tensors on the device of the predictions; nothing is
    read back to the host before :meth:`compute`.

    By default pixels count equally over the whole set (global accumulation), not per image or per batch.

    Attributes:
        accumulation: how the values are accumulated, see :data:`polyptych.metrics._accumulation.Accumulation`. It is
            recorded with every number.
        ignores: description of the pixels that do not count.
        beside_headline: names of sums that no task's headline depends on and that are too large to keep a hundred
            copies of (:mod:`polyptych.metrics._resampling`).
    """

    accumulation: Accumulation = "global"
    ignores: str = "pixels without a label"
    beside_headline: ClassVar[tuple[str, ...]] = ()

    @property
    def options(self) -> dict[str, bool | float | str]:
        """Options that change the values, by name; they are recorded with every number too."""
        return {}

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, **values: Tensor) -> None:
        """Add to the named sums, creating them at first use."""
        for name, value in values.items():
            value = value.detach()
            value = value.double() if value.is_floating_point() else value.long()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def merge(self, other: Metric) -> None:
        """Add the sums of another accumulator of the same kind."""
        self.add(**other.sums)

    @abstractmethod
    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Add images of one size: ``prediction`` as decoded by the task, ``target`` and ``valid`` (b h w) as in a
        Batch, without padding."""

    def update_batch(self, parts: Sequence[Part]) -> None:
        """Add a batch whose images may differ in size: each part has the arguments of :meth:`update`."""
        for part in parts:
            self.update(*part)

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The results by name, in the order of tables; NaN for results without any data."""

    def breakdown(self) -> dict[str, float]:
        """The headline by class, if there are classes."""
        return {}


class FinalMetric(Metric):
    """A metric too slow for validation during training: it is computed only when a run is finished.

    Attributes:
        higher_is_better: direction of every value.
    """

    higher_is_better: ClassVar[dict[str, bool]]


def ratio(numerator: Tensor, denominator: Tensor) -> float:
    """numerator / denominator on the host; NaN when the denominator is zero."""
    return float(numerator.double() / denominator) if float(denominator) else float("nan")


def histogram(index: Int[Tensor, ...], bins: int) -> Int[Tensor, bins]:
    """How often each of ``0 .. bins - 1`` occurs. Like ``torch.bincount(index, minlength=bins)``, which on CUDA waits
    for the minimum and the maximum of its input; here every index must be in range."""
    flat = index.reshape(-1)
    one = torch.ones((), dtype=torch.int64, device=flat.device)
    return torch.zeros(bins, dtype=torch.int64, device=flat.device).scatter_add_(0, flat, one.expand_as(flat))


class Averaged(Metric):
    """A metric computed separately for every image (or batch) and then averaged: the accumulation of several published
    protocols (ASTMT depth, MTAN, CAGrad, AdaShare), which is not comparable with the global one.

    An image or batch without anything to measure has no value and no weight. With several processes, each averages its
    own batches.

    Args:
        make: constructs the metric that is averaged.
        over: see :data:`polyptych.metrics._accumulation.Accumulation`.
    """

    def __init__(self, make: Callable[[], Metric], over: Literal["image", "batch", "batch_weighted"] = "image"):
        super().__init__()
        self._make, self.accumulation, self.ignores = make, over, make().ignores

    @property
    def options(self) -> dict[str, bool | float | str]:
        return self._make().options

    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        self.update_batch([(prediction, target, valid)])

    def update_batch(self, parts: Sequence[Part]) -> None:
        if self.accumulation != "image":
            self._average(parts, sum(len(part[2]) for part in parts) if self.accumulation == "batch_weighted" else 1)
            return
        for prediction, target, valid in parts:
            for row in range(len(valid)):
                one = slice(row, row + 1)
                self._average([(prediction[one], target[one], valid[one])], 1)

    def _average(self, parts: Sequence[Part], weight: int) -> None:
        """Add the values of some images together as one term of the mean."""
        metric = self._make()
        metric.update_batch(parts)
        for name, value in metric.compute().items():
            known = value == value
            self.add(**{f"sum/{name}": torch.tensor(weight * value if known else 0.0, dtype=torch.float64),
                        f"count/{name}": torch.tensor(weight if known else 0)})

    def compute(self) -> dict[str, float]:
        if not self.sums:
            return self._make().compute()
        names = [name.removeprefix("sum/") for name in self.sums if name.startswith("sum/")]
        return {name: ratio(self.sums[f"sum/{name}"], self.sums[f"count/{name}"]) for name in names}


def accumulated(make: Callable[[], Metric], over: Accumulation) -> Metric:
    """Accumulate a metric globally (all pixels of the set count equally), or as the mean over images or batches, as
    some protocols do."""
    return make() if over == "global" else Averaged(make, over)
