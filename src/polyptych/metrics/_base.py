"""A metric is a set of named sums: they add up over batches and processes, and the result follows from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import Tensor

from polyptych.metrics._accumulation import Accumulation


class Metric(ABC):
    """Streaming accumulator. ``sums`` are float64 (or int64) tensors on the device of the predictions; nothing is
    read back to the host before :meth:`compute`.

    By default pixels count equally over the whole set (global accumulation), not per image or per batch.

    Attributes:
        accumulation: how the values come about, see :data:`polyptych.metrics._accumulation.Accumulation`. It belongs
            to every number.
        ignores: which pixels do not count, in words.
    """

    accumulation: Accumulation = "global"
    ignores: str = "pixels without a label"

    @property
    def options(self) -> dict[str, bool | float | str]:
        """Choices that change the values, by name; they belong to every number too."""
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
        """Add what another accumulator of the same kind has seen."""
        self.add(**other.sums)

    @abstractmethod
    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Add a batch: ``prediction`` as decoded by the task, ``target`` and ``valid`` (b h w) as in a Batch."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The results by name, in the order in which a table shows them; NaN for what nothing was seen of."""

    def breakdown(self) -> dict[str, float]:
        """The headline by class, where there are classes."""
        return {}


class FinalMetric(Metric):
    """A metric that takes too long to be watched: it is measured when a run is finished, and not at validations.

    Attributes:
        higher_is_better: direction of every value.
    """

    higher_is_better: ClassVar[dict[str, bool]]


def ratio(numerator: Tensor, denominator: Tensor) -> float:
    """numerator / denominator on the host; NaN when the denominator is zero."""
    return float(numerator.double() / denominator) if float(denominator) else float("nan")


class Averaged(Metric):
    """A metric computed for every image (or every batch) by itself and then averaged: the accumulation of several
    published protocols (ASTMT depth, MTAN, CAGrad, AdaShare), which is not comparable with the global one.

    An image or batch in which nothing can be measured has no value and no weight. With several processes each averages
    its own batches.

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
        step = 1 if self.accumulation == "image" else len(valid)
        weight = len(valid) if self.accumulation == "batch_weighted" else 1
        for start in range(0, len(valid), step):
            part = slice(start, start + step)
            metric = self._make()
            metric.update(prediction[part], target[part], valid[part])
            for name, value in metric.compute().items():
                known = value == value
                self.add(**{f"sum/{name}": torch.tensor(weight * value if known else 0.0, dtype=torch.float64),
                            f"count/{name}": torch.tensor(weight if known else 0)})

    def compute(self) -> dict[str, float]:
        if not self.sums:
            return self._make().compute()
        names = [name.removeprefix("sum/") for name in self.sums if name.startswith("sum/")]
        return {name: ratio(self.sums[f"sum/{name}"], self.sums[f"count/{name}"]) for name in names}
