"""Training the supermodel in the ordinary loop: a warm-up with everything shared, then one random policy per step.

The warm-up produces the weights from which every copy starts. After it, each step draws a policy within the budget
(single-path sampling: Guo et al., ECCV 2020, arXiv 1904.00420), so that the weights fit all policies of the space
equally. The policy is a function of (seed, step), so a resumed phase continues exactly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import ClassVar

import torch
from torch import Tensor

from polyptych import distributed
from polyptych.balancers.fixed import Fixed
from polyptych.checkpoint import TrainingState, fill, read_tensors
from polyptych.datasets._base import Dataset
from polyptych.errors import InputError
from polyptych.interruption import Interrupted, stop_on_signal
from polyptych.logbook import environment
from polyptych.networks import Network
from polyptych.record import write_json
from polyptych.run import Run
from polyptych.search.procedure.settings import Search
from polyptych.search.procedure.super_encoder import SuperEncoder, build_supernetwork, encoder_of
from polyptych.search.space.policy import Policy
from polyptych.training import Trainer
from polyptych.types import Batch

TRIES = 200  # maximum number of draws for a policy within the budget

Allowed = Callable[[Policy], bool]


class PhaseTrainer(Trainer):
    """One phase of a search: the ordinary loop on the supermodel, without validation, test or report.

    Args:
        after: a finished phase whose weights this one starts from; a subclass then makes all copies from them.
    """

    has_copies: ClassVar[bool] = False

    def __init__(self, run: Run, search: Search, folder: Path, after: Path | None = None):
        self.search, self.after = search, after
        super().__init__(run, folder, resume=True)

    def _build_state(self) -> TrainingState:
        run = self.run
        network = build_supernetwork(run, self.search, self.tasks, pretrained=not (self.resumed or self.after))
        if self.after is not None and not self.resumed:
            load_phase(self.after, network)
        if self.has_copies:  # before the optimizer collects the parameters
            encoder_of(network).supermodel.materialize()
        network.to(self.device).to(memory_format=self.memory_format)
        balancer = run.build_balancer(self.tasks).to(self.device)
        return TrainingState(network, balancer, run.optimizer.build(network, balancer),
                             torch.amp.GradScaler(self.device.type, enabled=run.execution.precision == "float16"))

    @property
    def encoder(self) -> SuperEncoder:
        return encoder_of(self.state.network)

    def _validate(self) -> float:
        return 0.0

    def _prepare_folder(self, dataset: Dataset) -> None:
        self.last.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "environment.json", environment(self.device))


class SamplingTrainer(PhaseTrainer):
    """A random policy of the space at every step.

    Args:
        allowed: whether a policy is within the budget.
    """

    has_copies = True

    def __init__(self, run: Run, search: Search, folder: Path, after: Path, allowed: Allowed):
        self.allowed = allowed
        super().__init__(run, search, folder, after)

    def step(self, micro_batches: list[Batch]) -> tuple[dict[str, Tensor], dict[str, float | Tensor]]:
        random = Random(f"{self.run.seed} {self.state.step}")
        self.encoder.policy = draw_allowed(self.encoder.supermodel.space.draw, random, self.allowed)
        return super().step(micro_batches)


def draw_allowed(draw: Callable[[Random], Policy], random: Random, allowed: Allowed) -> Policy:
    """A random policy within the budget; after too many tries, one outside it."""
    policy = draw(random)
    for _ in range(TRIES):
        if allowed(policy):
            break
        policy = draw(random)
    return policy


def load_phase(folder: Path, network: Network) -> None:
    """Load the final weights of a phase, those of all its copies included."""
    path = folder / "checkpoints" / "last.safetensors"
    tensors = read_tensors(path)[0]
    if any(".banks.copies." in name for name in tensors):
        encoder_of(network).supermodel.materialize()
    # The state of the phase's policy optimizer does not belong to the network.
    fill(network, {name: value for name, value in tensors.items() if not name.startswith("network.policy_optimizer.")},
         "network.", path)


def phase_run(run: Run, steps: int) -> Run:
    """The recipe as a phase of a search trains it: shorter, in one process, with a balancer that weights losses."""
    monitoring = dataclasses.replace(run.monitoring, validate_every=steps)
    execution = dataclasses.replace(run.execution, compile=False, sync_batch_norm=False, recompute=False, shard=False)
    return dataclasses.replace(run, steps=steps, ema=0.0, monitoring=monitoring, execution=execution)


def with_plain_balancer(run: Run) -> tuple[Run, str]:
    """Choose a balancer for the supermodel: the run's own if it needs only losses, otherwise constant weights. Methods
    that compare gradients of shared parameters need the same shared parameters at every step.

    Returns:
        The run, and a message about the change; empty without one.
    """
    if run.build_balancer(run.build_tasks(run.build_dataset("train").labels)).one_backward:
        return run, ""
    return dataclasses.replace(run, balancer=Fixed.Config()), (
        f"balancer {run.balancer.name} looks at gradients of shared parameters, which change with the policy: the "
        f"supermodel is trained with {Fixed.Config().name} weights, every network after it with {run.balancer.name}")


def train_phase(trainer: PhaseTrainer, name: str, command: str) -> None:
    """Run a phase to its end.

    Args:
        command: the command that continues the search after an interruption.

    Raises:
        Interrupted: after saving everything.
    """
    if distributed.world() > 1:
        raise InputError("polyptych search", f"{distributed.world()} processes", "one",
                         "start it without torchrun; the networks that it finds may be trained by many")
    if trainer.state.step >= trainer.run.steps:
        return
    trainer.display.say(f"{name}: {trainer.run.steps} steps, from step {trainer.state.step}")
    with stop_on_signal() as stop, trainer.display:
        try:
            trainer.fit(stop)
        except (Interrupted, RuntimeError):
            if not stop.asked:
                raise
            raise Interrupted(f"{name} stopped at step {trainer.state.step} of {trainer.run.steps}; everything is "
                              f"saved, continue with `{command}`") from None


def finished_phase(folder: Path, steps: int) -> bool:
    """Whether a phase is finished."""
    path = folder / "checkpoints" / "last.safetensors"
    return path.exists() and read_tensors(path)[1].get("step") == steps


