"""How much a number depends on the choice of test images: the metric under many random weightings of the images.

A Poisson bootstrap. Each of :data:`REPLICATES` replicates gives every block of consecutive images a random weight
(Poisson with mean 1, which is drawing blocks with replacement when there are many) and adds up the metric's sums with
these weights; the spread of the results estimates that over test sets of the same size. A block is one evaluation
batch: neighboring images often show the same scene and are not independent, and the sums of a batch come at no extra
cost, whereas separate sums per image would take as long as measuring again.

The weights depend only on the position of a block. Two networks tested on the same images in the same order therefore
get the same weights, so that the spread of their *difference* can be computed from pairs of replicates.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from polyptych.metrics._base import Metric

REPLICATES = 100
"""With this many replicates, the standard deviation is known to 7%."""


class Resampling:
    """Follows metrics from batch to batch, without changing their sums.

    Attributes:
        replicates: by task, a metric whose sums have an additional first dimension; to be summed over processes.
    """

    def __init__(self) -> None:
        self.replicates: dict[str, Metric] = {}
        self._watched: Mapping[str, Metric] = {}
        self._before: dict[str, dict[str, Tensor]] = {}
        self._blocks = self._stream = 0

    def watch(self, metrics: Mapping[str, Metric], stream: int) -> None:
        """Begin, before the first batch.

        Args:
            stream: number of the process; processes draw the weights of their blocks independently.
        """
        self._watched, self._stream = metrics, stream
        self.replicates = {task: copy.deepcopy(metric) for task, metric in metrics.items()}
        self._before = {task: {} for task in metrics}

    def block(self) -> None:
        """Call after every batch: the increase of the sums since the last call is one block."""
        weights = block_weights(self._stream, self._blocks)
        self._blocks += 1
        for task, metric in self._watched.items():
            before = self._before[task]
            for name, value in metric.sums.items():
                if name not in metric.beside_headline:
                    grown = value - before[name] if name in before else value
                    self.replicates[task].add(**{name: weights.to(value.device).view(-1, *[1] * value.dim()) * grown})
            self._before[task] = dict(metric.sums)  # a metric replaces its sums and never changes them in place

    def record(self, headlines: Mapping[str, str], images: int) -> dict[str, Any]:
        """The headline of every replicate by task, for the record; call after summing over processes.

        Args:
            headlines: name of the headline of each task.
            images: number of images in a block.
        """
        return {"images_in_block": images,
                "headlines": {task: self._values(task, headline) for task, headline in headlines.items()}}

    def _values(self, task: str, headline: str) -> list[float]:
        whole, replicates = self._watched[task], self.replicates[task]
        found = []
        for index in range(REPLICATES if replicates.sums else 0):
            metric = copy.copy(replicates)
            # Sums that do not affect the headline are needed only so that compute() runs.
            metric.sums = {name: replicates.sums[name][index] if name in replicates.sums else value
                           for name, value in whole.sums.items()}
            found.append(float(metric.compute()[headline]))
        return found


def block_weights(stream: int, block: int) -> Int[Tensor, " r"]:
    """The weight of this block in every replicate."""
    generator = torch.Generator().manual_seed(stream * 1_000_003 + block)
    return torch.poisson(torch.ones(REPLICATES), generator=generator).long()
