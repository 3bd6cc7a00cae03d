"""AutoMTL's search: alternating training of weights and policy on split data, a term that favors sharing, sampling.

Source: Zhang, Liu, Guan, NeurIPS 2022, arXiv 2110.13076. The three phases here:

1. warm-up with equal weights on all choices of every unit;
2. ``network_steps`` on the weights (with 80% of the training images) alternate with ``policy_steps`` on the policy
   (with the other 20%), both with Gumbel-softmax weights; the temperature starts at 5 and is multiplied by 0.965 after
   every 101 policy steps;
3. policies are sampled from the softmax of the logits and trained like every other network (``encoder searched``).

Differences from the authors' code: all tasks see the same batch and take one step together (theirs take turns, each
with its own batches); the recipe's optimizer trains the weights, at a constant rate in phase 2 (theirs: SGD); the
validation split chooses among the samples (theirs: test); skips that cannot give the right size do not exist (theirs
fail); every network starts from fresh weights (theirs reuses trained heads).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from polyptych import devices
from polyptych.checkpoint import TrainingState
from polyptych.data.loading import TrainingBatches
from polyptych.datasets._base import Dataset
from polyptych.errors import InputError
from polyptych.optim import Schedule
from polyptych.passes import Passes
from polyptych.run import Run
from polyptych.search.procedure.phases import PhaseTrainer
from polyptych.search.procedure.settings import Search
from polyptych.search.space.policy import SHARED, Policy
from polyptych.search.space.units import Units
from polyptych.search.supermodel.soft_choices import Logits
from polyptych.training import open_dataset
from polyptych.types import Batch

TEMPERATURE, COOLING, COOLED_EVERY = 5.0, 0.965, 101
POLICY_SHARE = 5
"""One of this many blocks of training images is for the policy."""
BLOCK = 20
"""Neighboring images that stay on one side of the split: they may show the same scene."""
DECAY = 5e-4  # of the logits


def temperature(policy_steps: int) -> float:
    """The temperature of the Gumbel-softmax after this many policy steps."""
    return TEMPERATURE * COOLING ** (policy_steps // COOLED_EVERY)


def regularizer(weights: Sequence[Float[Tensor, "t c"]], choices: Sequence[Sequence[str]], units: Units, scale: float
                ) -> Float[Tensor, ""]:
    """``sum_t sum_l (D - d_l) / D sum_c ln(1 + exp(s (p_c - p_shared)))`` over all choices c except sharing; d is
    the depth of a unit in operations, D that of the deepest. A choice that a unit does not have adds nothing."""
    deepest = max((unit.depth for unit in units), default=1)
    total = weights[0].new_zeros(())
    for unit, names, table in zip(units, choices, weights, strict=True):
        if SHARED in names:
            shared = table[:, names.index(SHARED)]
            others = [table[:, i] for i, name in enumerate(names) if name != SHARED]
            for other in others:
                total = total + (deepest - unit.depth) / deepest * F.softplus(scale * (other - shared)).sum()
    return total


class PretrainTrainer(PhaseTrainer):
    """Phase 1: the mean of all choices at every unit."""

    has_copies = True

    def step(self, micro_batches: list[Batch]) -> tuple[dict[str, Tensor], dict[str, float | Tensor]]:
        self.encoder.weights = self.encoder.logits.uniform()
        return super().step(micro_batches)


class AlternatingTrainer(PretrainTrainer):
    """Phase 2. The logits and the moments of their optimizer are saved with the network."""

    def __init__(self, run: Run, search: Search, folder: Path, after: Path):
        constant = dataclasses.replace(run, schedule=Schedule(kind="constant"))
        super().__init__(constant, search, folder, after)
        self.batches = _InTurn(self)  # type: ignore[assignment]

    def _build_state(self) -> TrainingState:
        state = super()._build_state()
        self.adam = Adam(self.search.policy_rate, self.encoder_logits(state))
        state.network.add_module("policy_optimizer", self.adam.to(self.device))
        return state

    @staticmethod
    def encoder_logits(state: TrainingState) -> Logits:
        encoder: Any = state.network.encoder
        return encoder.logits

    def step(self, micro_batches: list[Batch]) -> tuple[dict[str, Tensor], dict[str, float | Tensor]]:
        cycle = self.search.network_steps + self.search.policy_steps
        policy = self.state.step % cycle < self.search.policy_steps
        if policy:
            return self.policy_step(micro_batches)
        self.encoder.weights = self.encoder.logits.sample(temperature(self.policy_steps))
        return PhaseTrainer.step(self, micro_batches)

    @property
    def policy_steps(self) -> int:
        """Policy steps done so far."""
        cycles, rest = divmod(self.state.step, self.search.network_steps + self.search.policy_steps)
        return cycles * self.search.policy_steps + min(rest, self.search.policy_steps)

    def policy_step(self, micro_batches: list[Batch]) -> tuple[dict[str, Tensor], dict[str, float | Tensor]]:
        """One step of the logits; the weights of the network do not move (its batch statistics do)."""
        state, encoder = self.state, self.encoder
        state.network.train()
        tau = temperature(self.policy_steps)
        tables = list(encoder.logits.tables)
        passes = Passes(self.model, self.forward, self.tasks, micro_batches, self.device, self.memory_format,
                        self.autocast)
        self.active = passes.active
        encoder.logits.requires_grad_(True)
        losses: dict[str, Tensor] = {}
        gradients = [torch.zeros_like(table) for table in tables]
        for number, run in enumerate(passes()):
            encoder.weights = encoder.logits.sample(tau)
            found, _ = run()
            objective = torch.stack([self.balance(name) * loss for name, loss in found.items()]).sum()
            if number == 0:  # once per step, with its own draw
                fresh = encoder.logits.sample(tau)
                objective = objective + self.search.regularizer * regularizer(
                    fresh, encoder.logits.choices, encoder.supermodel.units, self.search.scale)
            for total, gradient in zip(gradients, torch.autograd.grad(objective, tables, allow_unused=True),
                                       strict=True):
                total += 0 if gradient is None else gradient
            losses = {name: losses.get(name, 0) + loss.detach() for name, loss in found.items()}
        encoder.logits.requires_grad_(False)
        self.adam.step(tables, gradients)
        state.step += 1
        self.learning_rate = self.search.policy_rate
        self._watch(losses)
        return losses, {name: self.balance(name) for name in losses}

    def balance(self, task: str) -> float:
        """The weight of a task in policy steps: the usual one in the field."""
        return self.tasks[task].standard_weight


class Adam(nn.Module):
    """Adam with L2 decay on tables of logits. Its moments are buffers, so they are saved with the network.

    Kingma and Ba, ICLR 2015, arXiv 1412.6980. torch's Adam rounds differently (half of the logits differ in their last
    bits after one step) and keeps its moments elsewhere, so a search begun by version 0.1.0 would end with other
    numbers.
    """

    steps: Tensor

    def __init__(self, rate: float, tables: Logits):
        super().__init__()
        self.rate = rate
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        for i, table in enumerate(tables.tables):
            self.register_buffer(f"first_{i}", torch.zeros_like(table))
            self.register_buffer(f"second_{i}", torch.zeros_like(table))

    @torch.no_grad()
    def step(self, tables: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        self.steps += 1
        number = int(self.steps)
        for i, (table, gradient) in enumerate(zip(tables, gradients, strict=True)):
            first, second = self.get_buffer(f"first_{i}"), self.get_buffer(f"second_{i}")
            gradient = gradient + DECAY * table
            first.lerp_(gradient, 0.1)
            second.lerp_(gradient.square(), 0.001)
            table -= self.rate * (first / (1 - 0.9**number)) / ((second / (1 - 0.999**number)).sqrt() + 1e-8)


class _InTurn:
    """Batches from the policy's part of the training images for policy steps and from the other part for network
    steps, starting at the trainer's step."""

    def __init__(self, trainer: AlternatingTrainer):
        self.trainer = trainer
        run, dataset = trainer.run, open_dataset(trainer.run, "train")
        size = run.size or dataset.read(0).info.native
        of_policy = trainer.policy_steps
        starts = {True: of_policy, False: trainer.state.step - of_policy}
        self.streams = {part: TrainingBatches(
            Part(dataset, part), trainer.tasks, run.augment, size, run.batch_size, run.seed, start * run.accumulate,
            workers=run.loading.workers, pin_memory=devices.pins(trainer.device), on_fault=run.loading.on_fault)
            for part, start in starts.items()}

    @property
    def faults(self) -> dict[int, str]:
        return {index: fault for stream in self.streams.values() for index, fault in stream.faults.items()}

    def __iter__(self) -> Iterator[Batch]:
        search, run = self.trainer.search, self.trainer.run
        streams = {part: iter(stream) for part, stream in self.streams.items()}
        for step in count(self.trainer.state.step):
            policy = step % (search.network_steps + search.policy_steps) < search.policy_steps
            for _ in range(run.accumulate):
                yield next(streams[policy])


class Part(Dataset):
    """Every fifth block of 20 neighboring samples (the policy's), or the others."""

    def __init__(self, dataset: Dataset, policy: bool):
        self.inner, self.policy = dataset, policy
        self.config, self.split, self.tasks = dataset.config, dataset.split, dataset.tasks
        self.labels, self.protocol = dataset.labels, dataset.protocol
        block = min(BLOCK, max(1, len(dataset) // POLICY_SHARE))
        whole, left = divmod(len(dataset), block * POLICY_SHARE)
        own = max(0, left - block * (POLICY_SHARE - 1))
        self.block, self.number = block, (whole * block + own if policy else len(dataset) - whole * block - own)
        if not self.number:
            raise InputError("--space automtl", f"{len(dataset)} training images",
                             f"{POLICY_SHARE} or more, to be split", "use more, or the space tree")

    def __len__(self) -> int:
        return self.number

    def read(self, index: int) -> Any:
        return self.inner.read(self.position(index))

    def position(self, index: int) -> int:
        """The position in the whole dataset of a sample of this part."""
        if self.policy:
            blocks, rest = divmod(index, self.block)
            return blocks * self.block * POLICY_SHARE + self.block * (POLICY_SHARE - 1) + rest
        wide = self.block * (POLICY_SHARE - 1)
        blocks, rest = divmod(index, wide)
        return blocks * self.block * POLICY_SHARE + rest


def sample(logits: Logits, number: int, seed: int, share_first: int = 0) -> Iterator[Policy]:
    """Draw policies from the softmax of the logits; all tasks share the first ``share_first`` units."""
    for position in range(number):
        drawn = logits.draw(Random(f"{seed} sample {position}"))
        rows = [(SHARED,) * len(drawn.tasks) if i < share_first else row for i, row in enumerate(drawn.choices)]
        yield logits.space.nearest(rows)
