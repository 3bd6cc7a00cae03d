"""The forward passes of one optimizer step: from micro-batches to losses that are normalized over the whole step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from polyptych import devices, distributed
from polyptych.balancers._base import Pass, add
from polyptych.balancers._engine import undisturbed
from polyptych.tasks._base import Task
from polyptych.types import Batch, Loss, Output


class Passes:
    """One forward pass per micro-batch of a step.

    A loss is the sum over valid pixels, divided by their number in all micro-batches and processes. Gradients are
    averaged over processes, so each process multiplies its part by the number of processes: the average is then the
    gradient of the whole batch.

    Attributes:
        counts: valid pixels of each task in the step, over all processes.
        active: the tasks that have any valid pixel.
    """

    def __init__(self, model: nn.Module, forward: Callable[..., Output], tasks: dict[str, Task],
                 micro_batches: Sequence[Batch], device: torch.device, memory_format: torch.memory_format,
                 autocast: Callable[[], torch.autocast]):
        # Counted on the host, where the loader left the masks: a device would have to be waited for.
        rows = [torch.stack([torch.cat([b.valid[name].sum()[None], task.label_sums(b.target[name], b.valid[name])])
                             for b in micro_batches]).sum(0) for name, task in tasks.items()]
        sums = torch.cat(rows)
        if distributed.world() > 1:
            sums = distributed.total(sums)
        parts = dict(zip(tasks, sums.split([len(row) for row in rows]), strict=True))
        self.counts = {name: float(part[0]) for name, part in parts.items()}
        wide = devices.widest(device)
        self._label_sums = {name: devices.sent(part[1:], device, wide) for name, part in parts.items()}
        self.active = {task for task, count in self.counts.items() if count}
        self._model, self._forward, self._tasks, self._autocast = model, forward, tasks, autocast
        self._batches = [batch.to(device, memory_format) for batch in micro_batches]
        self._random = devices.random_states([device])

    def __call__(self) -> list[Pass]:
        return [partial(self._run, batch) for batch in self._batches]

    def again(self, network: nn.Module) -> dict[str, Tensor]:
        """Compute the losses of the step again with the network's current weights, over all processes: with the same
        random numbers as before, and without changing gradients, batch statistics, or later random numbers."""
        total: dict[str, Tensor] = {}
        with undisturbed(network), torch.no_grad():
            for device, state in self._random.items():
                devices.set_random_state(device, state)
            for run in self():
                total = add(total, run()[0])
        return {task: distributed.mean(loss) for task, loss in total.items()}

    def _run(self, batch: Batch) -> tuple[dict[str, Tensor], Output]:
        with self._synchronized(batch is self._batches[-1]), self._autocast():
            output = self._forward(batch.image, batch.features) if batch.features else self._forward(batch.image)
        losses = {name: total_loss(task, name, output, batch, self._label_sums[name]).sum
                  for name, task in self._tasks.items()}
        losses = {name: loss * (distributed.world() / max(self.counts[name], 1)) for name, loss in losses.items()}
        if output.penalty is not None:  # of this process and micro-batch; that of the step is the mean
            part = output.penalty / len(self._batches)
            losses = {name: loss + part if name in self.active else loss for name, loss in losses.items()}
        return losses, output

    def _synchronized(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Let DistributedDataParallel exchange gradients only once per step, with the last micro-batch."""
        if isinstance(self._model, nn.parallel.DistributedDataParallel) and not last:
            return self._model.no_sync()
        return contextlib.nullcontext()


class EpochMeans:
    """Mean training losses of an epoch, over valid pixels and processes."""

    def __init__(self, tasks: Sequence[str], device: torch.device):
        self._tasks = tuple(tasks)
        self._sums = torch.zeros(2, len(self._tasks), dtype=devices.widest(device), device=device)

    def add(self, losses: dict[str, Tensor], counts: dict[str, float]) -> None:
        """Add one step."""
        number = devices.sent([counts[task] for task in self._tasks], self._sums.device, self._sums.dtype)
        self._sums += torch.stack([torch.stack([losses[task] for task in self._tasks]).to(number) * number, number])

    def take(self) -> dict[str, float]:
        """The means so far, for the tasks that had labels; then start over."""
        sums, numbers = self.saved()
        self._sums.zero_()
        return {task: value / number for task, value, number in zip(self._tasks, sums, numbers, strict=True) if number}

    def saved(self) -> list[list[float]]:
        """What :meth:`restore` needs, as plain numbers; every process must call this."""
        return distributed.mean(self._sums).tolist()

    def restore(self, saved: list[list[float]]) -> None:
        sums = torch.tensor(saved, dtype=torch.float64)
        if sums.shape != self._sums.shape:
            raise ValueError(f"epoch of shape {tuple(sums.shape)}")  # a smaller one would be broadcast to all tasks
        self._sums.copy_(sums, non_blocking=True)


def total_loss(task: Task, name: str, output: Output, batch: Batch, sums: Tensor | None = None) -> Loss:
    """A task's loss on its final prediction and on every auxiliary one (deep supervision). The count stays that of
    the final prediction: auxiliary losses add to the numerator only.

    Args:
        sums: label sums (``Task.label_sums``) over the whole step, if the batch is only a part of it.
    """
    target, valid = batch.target[name], batch.valid[name]
    if sums is None:
        sums = task.label_sums(target, valid)
    loss = task.loss_in_step(output.final[name], target, valid, sums)
    for auxiliary in output.auxiliary:
        if name in auxiliary.prediction:
            part = task.loss_in_step(auxiliary.prediction[name], target, valid, sums)
            loss.sum = loss.sum + auxiliary.weight * part.sum
    return loss
