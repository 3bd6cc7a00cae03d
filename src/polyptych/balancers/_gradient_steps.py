"""One step of a balancer that compares gradients: which backward passes its level takes, and in which order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polyptych import devices, distributed
from polyptych.balancers._base import Pass, add
from polyptych.balancers._engine import Reach, gram, gram_of_maps, predictions, undisturbed, unscaled
from polyptych.errors import InputError
from polyptych.types import Output

if TYPE_CHECKING:  # _gradients imports this file
    from polyptych.balancers._gradients import GramBalancer, Level


class Step:
    """The micro-batches of one step, and its results so far.

    Each process has its own part of the batch; the step's losses and gradients are means over processes. A process
    whose part has no label for a task contributes zeros to every exchange.

    Attributes:
        tasks: the active tasks.
        losses: the sums over the micro-batches so far, detached.
        weights: the weights of the active tasks, once known.
    """

    def __init__(self, balancer: GramBalancer, passes: Sequence[Pass], network: nn.Module, scale: float | Tensor,
                 active: Collection[str] | None):
        self.balancer, self.passes, self.network, self.scale = balancer, passes, network, scale
        self.config = balancer.config
        self.tasks = tuple(task for task in balancer.tasks if active is None or task in active)
        self.losses: dict[str, Tensor] = {}
        self.weights: dict[str, Any] = {}  # numbers; tensors if the device decides on them
        self._reach: Reach | None = None
        self.level: Level | None = balancer.level
        self._followed: dict[str, Tensor] | None = None

    @property
    def reach(self) -> Reach:
        assert self._reach is not None
        return self._reach

    def run(self) -> None:
        """Add the gradients of the step to ``.grad``."""
        before = [(p, p.grad.clone()) for p in self.network.parameters() if p.grad is not None]
        passes = self.passes
        while True:
            for parameter in self.network.parameters():
                parameter.grad = None
            self.passes, self.losses, self._reach, self.level = passes, {}, None, self.balancer.level
            try:
                self._by_level()
                break
            except _ReachGrew:  # the sums so far lack parameters; reach only grows, so this ends
                continue
        if self.tasks and self.config.clip_shared:
            self._clip(self.config.clip_shared)
        for parameter, gradient in before:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def _by_level(self) -> None:
        if not self.tasks:
            self._backward_nothing()
        elif self.level is None:
            self._backward_weighted([1.0] * len(self.tasks))
        elif (kept := self.balancer.kept(self.tasks)) is not None:
            self._backward_weighted(kept)
        elif not self.balancer.needs_gram:
            self._by_survey()
        elif self.level == "parameters":
            self._by_rows()
        elif self.level == "representation" and (len(self.passes) == 1 or self.balancer.combines_gradients):
            self._through_the_cut()
        else:
            self._by_survey()

    def _backward_nothing(self) -> None:
        """Without an active task: gradients of zero, because the loss scaler raises an error if there are none."""
        for run in self.passes:
            losses, _ = self._forward(run)
            if ends := [loss for loss in losses.values() if loss.requires_grad]:
                (torch.stack(ends).sum() * 0).backward()
        self._average()

    def _forward(self, run: Pass) -> tuple[dict[str, Tensor], Output | None]:
        losses, output = run()
        self.losses = add(self.losses, losses)
        if losses is not self._followed:
            self._followed = losses
            made = predictions(output) if output is not None else {}
            # A task without labels in this pass may have a constant loss; its prediction shows what it would reach.
            ends = {task: [loss] if loss.requires_grad else made.get(task, []) for task, loss in losses.items()}
            found = self.balancer.follow(self.network, ends, output.shared if output is not None else ())
            if (self._reach is not None and found is not self._reach) or self.balancer.level != self.level:
                raise _ReachGrew
            self._reach = found
        return losses, output

    # -- parameters ----------------------------------------------------------------------------------------------

    def _by_rows(self) -> None:
        """Collect the rows of all micro-batches, and combine them without another backward pass."""
        balancer = self.balancer
        for number, run in enumerate(self.passes):
            self._add_rows(run, number)
        distributed.average_([balancer.rows.flat])
        self._set(balancer.merge_rows(self.scale, self._mean_losses(), self.tasks))
        balancer.rows.hand_over()
        for task in self.tasks:
            found = [p.grad for p in self.reach.private[task] if p.grad is not None]
            weight = self.weights[task]
            if found and self.config.weight_heads and (isinstance(weight, Tensor) or weight != 1):
                torch._foreach_mul_(found, weight)
        distributed.average_gradients([p for task in self.tasks for p in self.reach.private[task]])

    def _add_rows(self, run: Pass, number: int) -> None:
        losses, _ = self._forward(run)
        size, split = len(self.tasks), number % self.balancer.splits
        if number == 0:
            self.balancer.clear_rows(self.reach.shared, self.balancer.splits * size)
        present = [task for task in self.tasks if losses[task].requires_grad]
        for task in present:
            with self.balancer.rows.filling(split * size + self.tasks.index(task)):
                (losses[task] * self.scale).backward(inputs=[*self.reach.shared, *self.reach.private[task]],
                                                     retain_graph=task != present[-1])

    # -- representation ------------------------------------------------------------------------------------------

    def _through_the_cut(self) -> None:
        """Take each task's gradient as far as the cut, and one combined gradient from there."""
        for run in self.passes:
            losses, output = self._forward(run)
            cut = self._cut(output)
            ends = {task: [*cut, *self.reach.heads[task]] for task in self.tasks}
            found = {task: self._gradients(losses[task], ends[task]) for task in self.tasks}
            self._refuse_bypassed(losses, [x for of_task in found.values() for x in of_task[:len(cut)]])
            maps = [[_or_zero(found[task][k], z) for task in self.tasks] for k, z in enumerate(cut)]
            combined, weights = self.balancer.merge_maps(cut, maps, self.scale, self._mean_losses(), self.tasks)
            self._set(weights)
            for task in self.tasks:
                factor = self.weights[task] if self.config.weight_heads else 1.0
                for parameter, gradient in zip(ends[task][len(cut):], found[task][len(cut):], strict=True):
                    if gradient is not None:
                        gradient = gradient if factor == 1 else gradient * factor
                        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            del losses, output, found, maps  # frees the heads' memory before the trunk needs its own
            torch.autograd.backward(cut, combined)
        self._average()

    def _cut(self, output: Output | None) -> list[Tensor]:
        """The tensors at the cut through which gradients reach the trunk."""
        return [z for z in output.shared if z.requires_grad] if output is not None else []

    # -- weights first, then one backward pass -------------------------------------------------------------------

    def _by_survey(self) -> None:
        """Inner products of all micro-batches first, then one backward pass with the weights."""
        if len(self.passes) == 1:
            losses, output = self._forward(self.passes[0])
            inner = self._survey(losses, output)
            again: list[Pass] = [lambda: (losses, output)]  # the graph is still there
        else:
            with undisturbed(self.network):
                inner = sum((self._survey(*self._forward(run)) for run in self.passes[1:]),
                            self._survey(*self._forward(self.passes[0])))
            again = list(self.passes)
        if self.level == "layer" and self.balancer.needs_gram:
            rows = distributed.mean(inner)
            inner = unscaled(gram(list(rows)), self.scale)
        weights = self.balancer.weights_of(inner, self._mean_losses(), self.tasks)
        self.passes, self.losses = again, {}
        self._backward_weighted(weights)

    def _survey(self, losses: dict[str, Tensor], output: Output | None) -> Tensor:
        """What adds up over micro-batches: inner products at the cut, or the rows of the last shared layer; zeros if
        the method needs only losses."""
        if not self.balancer.needs_gram:
            size, first = len(self.tasks), losses[self.tasks[0]]
            return torch.zeros(size, size, dtype=devices.widest(first.device), device=first.device)
        layer = self.level == "layer"
        ends = list(self.reach.layer) if layer else self._cut(output)
        gradients = [self._gradients(losses[task], ends) for task in self.tasks]
        if not layer:
            self._refuse_bypassed(losses, [x for of_task in gradients for x in of_task])
        found = [[_or_zero(x, end) for x, end in zip(of_task, ends, strict=True)] for of_task in gradients]
        if layer:
            return torch.stack([torch.cat([x.flatten() for x in row]) for row in found])
        return gram_of_maps([list(of_tasks) for of_tasks in zip(*found, strict=True)], self.scale)

    def _backward_weighted(self, weights: list[float]) -> None:
        """One ordinary backward pass for every micro-batch (two through the heads if these are not weighted)."""
        self._set(weights)
        for run in self.passes:
            losses, _ = self._forward(run)
            present = {task: losses[task] * self.scale for task in self.tasks if losses[task].requires_grad}
            if not present:
                continue
            whole = torch.stack([self.weights[task] * loss for task, loss in present.items()]).sum()
            if self.config.weight_heads:
                whole.backward()
                continue
            at_cut = self.balancer.needs_gram and self.level == "representation"
            weighted = self.reach.trunk if at_cut else self.reach.shared
            inside = {id(p) for p in weighted}
            rest = [p for p in self.reach.all if id(p) not in inside]
            if weighted:
                whole.backward(inputs=weighted, retain_graph=bool(rest))
            if rest:
                torch.stack(list(present.values())).sum().backward(inputs=rest)
        self._average()

    # -- parts ---------------------------------------------------------------------------------------------------

    def _refuse_bypassed(self, losses: dict[str, Tensor], gradients: Sequence[Tensor | None]) -> None:
        """Refuse a cut that no loss depends on. In a network compiled as a whole, losses come not from the tensors of
        the cut, but from the one node that also made these; the trunk would get zero gradients."""
        if all(x is None for x in gradients) and any(losses[task].requires_grad for task in self.tasks):
            raise InputError("Output.shared", "features that no loss was computed from, as in a network that is "
                             "compiled as a whole", "the features that the heads read", "compile the network's parts "
                             "(network.encoder.compile(), ...), or choose --balancer.level parameters")

    def _gradients(self, loss: Tensor, ends: Sequence[Tensor]) -> Sequence[Tensor | None]:
        if not loss.requires_grad:
            return [None] * len(ends)
        return torch.autograd.grad(loss * self.scale, ends, retain_graph=True, allow_unused=True)

    def _mean_losses(self) -> Tensor:
        return distributed.mean(torch.stack([self.losses[task] for task in self.tasks]))

    def _set(self, weights: Sequence[float] | Sequence[Tensor]) -> None:
        named: dict[str, Any] = dict(zip(self.tasks, weights, strict=True))
        self.weights = named

    def _average(self) -> None:
        distributed.average_gradients(self.reach.all)

    def _clip(self, largest: float) -> None:
        found = [p.grad for p in self.reach.shared if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(found) / self.scale
        torch.nn.utils.clip_grads_with_norm_(self.reach.shared, largest, norm)


def _or_zero(gradient: Tensor | None, end: Tensor) -> Tensor:
    return torch.zeros_like(end) if gradient is None else gradient


class _ReachGrew(Exception):
    """A later micro-batch of a step uses parameters that the earlier ones did not."""
