"""A metric is a set of named sums: they add up over batches and processes, and the result follows from them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor


class Metric(ABC):
    """Streaming accumulator. ``sums`` are float64 (or int64) tensors on the device of the predictions; nothing is
    read back to the host before :meth:`compute`.

    By default pixels count equally over the whole set (global accumulation), not per image or per batch.
    """

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


def ratio(numerator: Tensor, denominator: Tensor) -> float:
    """numerator / denominator on the host; NaN when the denominator is zero."""
    return float(numerator.double() / denominator) if float(denominator) else float("nan")


class Averaged(Metric):
    """A metric computed for every image (or every batch) by itself and then averaged: the accumulation of several
    published protocols (ASTMT depth, MTAN 2019), which is not comparable with the global one.

    Args:
        make: constructs the metric that is averaged.
        over: ``image`` or ``batch``.
    """

    def __init__(self, make: Callable[[], Metric], over: str = "image"):
        super().__init__()
        self._make, self._over = make, over

    def update(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        step = 1 if self._over == "image" else len(valid)
        for start in range(0, len(valid), step):
            part = slice(start, start + step)
            metric = self._make()
            metric.update(prediction[part], target[part], valid[part])
            for name, value in metric.compute().items():
                if value == value:  # an image without a label has no value and no weight
                    self.add(**{f"sum/{name}": torch.tensor(value, dtype=torch.float64),
                                f"count/{name}": torch.tensor(1)})

    def compute(self) -> dict[str, float]:
        names = [name.removeprefix("sum/") for name in self.sums if name.startswith("sum/")]
        return {name: ratio(self.sums[f"sum/{name}"], self.sums[f"count/{name}"]) for name in names}
