"""Judging policies on the supermodel: batch statistics first, then the validation split.

A supermodel's running statistics come from whatever policies were sampled; with these, every evaluation would be noise.
So the statistics of each policy are re-estimated from training batches before it is judged (a cumulative average, as
for averaged weights: Izmailov et al., UAI 2018, arXiv 1803.05407). The score is the mean skill on images of the
validation split, which is carved out of train; the test split stays unopened.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from polyptych.data.loading import EvaluationBatches, TrainingBatches
from polyptych.datasets._base import Dataset
from polyptych.evaluation import Evaluator, measure, skill
from polyptych.networks import Network
from polyptych.run import Run
from polyptych.search.procedure.super_encoder import encoder_of
from polyptych.search.space.policy import Policy
from polyptych.tasks._base import Task
from polyptych.types import Batch


class Judge:
    """Keeps the batches that every policy is judged on.

    Args:
        calibration: number of training batches for batch statistics.
        images: maximum number of validation images.
    """

    def __init__(self, run: Run, tasks: dict[str, Task], device: torch.device, calibration: int, images: int):
        self.tasks, self.device = tasks, device
        train = run.build_dataset("train")
        size = run.size or train.read(0).info.native
        stream = TrainingBatches(train, tasks, run.augment, size, run.batch_size, run.seed + 1,
                                 on_fault=run.loading.on_fault)
        self.calibration = list(islice(stream, calibration))
        self.evaluator = Evaluator(run, tasks, device)
        validation = _First(run.build_dataset("val"), images)
        self.validation = list(EvaluationBatches(validation, tasks, run.size, run.batch_size,
                                                  on_fault=run.loading.on_fault))
        trivial = measure({"trivial": self.evaluator.trivial_predictor()}, self.validation, tasks, device)["trivial"]
        self.trivial = {name: metric.compute()[tasks[name].headline] for name, metric in trivial.items()}

    def score(self, network: Network, policy: Policy) -> dict[str, float]:
        """The skill of every task under a policy, with the policy's own batch statistics."""
        encoder = encoder_of(network)
        encoder.supermodel.materialize([policy])
        network.to(self.device)
        encoder.policy, encoder.weights = policy, None
        estimate_statistics(network, (batch.to(self.device) for batch in self.calibration))
        found = measure({"network": self.evaluator.network_predictor(network)}, self.validation, self.tasks,
                        self.device)["network"]
        return {name: skill(metric.compute()[task.headline], self.trivial[name], task.perfect)
                for (name, task), metric in zip(self.tasks.items(), found.values(), strict=True)}


@torch.no_grad()
def estimate_statistics(network: nn.Module, batches: Iterable[Batch]) -> None:
    """Replace running statistics by the mean over some batches, without changing weights. Everything except batch norm
    is in evaluation mode: no dropout, no stochastic depth. Frozen layers keep their statistics."""
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats
             and getattr(module, "frozen", "") != "all"]
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # a cumulative average
        module.train()
    try:
        for batch in batches:
            network(batch.image)
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
        network.eval()


class _First(Dataset):
    """At most ``number`` evenly spaced samples of a dataset."""

    def __init__(self, dataset: Dataset, number: int):
        self.inner = dataset
        self.config, self.split, self.tasks = dataset.config, dataset.split, dataset.tasks
        self.labels, self.protocol = dataset.labels, dataset.protocol
        self.number = min(number, len(dataset))

    def __len__(self) -> int:
        return self.number

    def read(self, index: int) -> Any:
        return self.inner.read(index * len(self.inner) // self.number)
