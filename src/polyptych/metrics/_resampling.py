"""How far other test images would have moved a number: the metric over many random weightings of the images.

A Poisson bootstrap. Each of :data:`REPLICATES` replicates gives every block of consecutive images a random weight
(Poisson with mean 1, which is drawing blocks with replacement when there are many) and adds up the metric's sums with
these weights; the spread of the results is that of test sets of the same size. A block is one batch of evaluation:
images that stand beside each other often show the same scene and are not independent, and a batch costs nothing to take
apart, whereas measuring every image by itself would take as long as measuring again.

The weights depend on the position of a block alone. Two networks that were tested on the same images in the same order
are therefore weighted alike, so that the spread of their *difference* follows from their replicates pair by pair.
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
"""The deviation over so many replicates is known to 7%."""


class Resampling:
    """Watches metrics as they see one batch after another. Their own sums stay as they are.

    Attributes:
        replicates: by task, a metric whose sums have one more dimension in front; to be added up over processes.
    """

    def __init__(self) -> None:
        self.replicates: dict[str, Metric] = {}
        self._watched: Mapping[str, Metric] = {}
        self._before: dict[str, dict[str, Tensor]] = {}
        self._blocks = self._stream = 0

    def watch(self, metrics: Mapping[str, Metric], stream: int) -> None:
        """Begin, before the first batch.

        Args:
            stream: number of the process; processes weigh their blocks independently.
        """
        self._watched, self._stream = metrics, stream
        self.replicates = {task: copy.deepcopy(metric) for task, metric in metrics.items()}
        self._before = {task: {} for task in metrics}

    def block(self) -> None:
        """After every batch: what the sums grew by since the last one is a block."""
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
        """What is kept: the headline of every replicate by task; after everything was added up over processes.

        Args:
            headlines: the name of each task's.
            images: in a block.
        """
        return {"images_in_block": images,
                "headlines": {task: self._values(task, headline) for task, headline in headlines.items()}}

    def _values(self, task: str, headline: str) -> list[float]:
        whole, replicates = self._watched[task], self.replicates[task]
        found = []
        for index in range(REPLICATES if replicates.sums else 0):
            metric = copy.copy(replicates)
            # What does not bear on the headline is there only so that the other results can be computed at all.
            metric.sums = {name: replicates.sums[name][index] if name in replicates.sums else value
                           for name, value in whole.sums.items()}
            found.append(float(metric.compute()[headline]))
        return found


def block_weights(stream: int, block: int) -> Int[Tensor, " r"]:
    """How often every replicate holds this block."""
    generator = torch.Generator().manual_seed(stream * 1_000_003 + block)
    return torch.poisson(torch.ones(REPLICATES), generator=generator).long()
