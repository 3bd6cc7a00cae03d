"""What a protocol is: everything that makes two published numbers comparable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from polyptych.metrics._accumulation import Accumulation, number_name


@dataclass(frozen=True)
class Measure:
    """How a protocol measures one task.

    Attributes:
        metrics: whether higher is better, by name of the metric.
        accumulation: see :data:`polyptych.metrics._accumulation.Accumulation`.
        options: options of the metric that the protocol fixes. What does not change a number on its full test set (how
            absent classes count, where every class occurs) is not fixed.
        images: how many images of the test split the task is measured on, where that is not all; numbers of others do
            not belong to the protocol, whatever the other tasks' do.
    """

    metrics: Mapping[str, bool]
    accumulation: Accumulation = "global"
    options: Mapping[str, bool | float | str] = field(default_factory=dict)
    images: int | None = None

    @property
    def numbers(self) -> dict[str, bool]:
        """Whether higher is better, by name of the number."""
        return {number_name(name, self.accumulation): higher for name, higher in self.metrics.items()}


@dataclass(frozen=True)
class Protocol:
    """One way of training and measuring that a line of papers shares. Numbers of two protocols are never compared.

    Attributes:
        id: its name in reports and in the registry of published rows.
        data: what is learned from and measured on, in words.
        dataset: the ``protocol`` of a dataset, ``NAME-CLASSES-SIZE-LAYOUT``, in which ``*`` stands for any part and
            ``a|b`` for either; empty where none of ours can express it.
        images: of the test split.
        input: size (h, w) of the network's input; ``native`` where images are only padded.
        tasks: how each task is measured.
        batch_size: at the test, where the accumulation depends on it.
        training: budget and augmentation, in short. They are stated beside the numbers, not checked.
        selection: which weights its numbers belong to. A run of ours always tests its final weights, or those that were
            best on validation images carved out of the training set.
        special: what sets it apart from its neighbors.
        source: authors, venue, arXiv id.
        certainty: ``V`` where the facts were read in a public source, ``R`` where they are recalled from the paper.
        obstacle: why no run of ours can qualify; empty where one can.
    """

    id: str
    data: str
    dataset: str
    images: int
    input: tuple[int, int] | Literal["native"]
    tasks: Mapping[str, Measure]
    training: str
    selection: str
    special: str
    source: str
    certainty: Literal["V", "R"] = "V"
    batch_size: int | None = None
    obstacle: str = ""

    @property
    def numbers(self) -> dict[str, dict[str, bool]]:
        """Whether higher is better, by task and name of the number."""
        return {task: measure.numbers for task, measure in self.tasks.items()}

    @property
    def summary(self) -> str:
        """One line for a listing."""
        measurable = "" if not self.obstacle else "; no run can qualify"
        return f"{self.data}: {', '.join(self.tasks)}; {self.special}{measurable}"
