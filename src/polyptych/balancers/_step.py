"""One step of a gradient balancer, level by level."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from polyptych import distributed
from polyptych.balancers._base import Pass, add
from polyptych.balancers._engine import Reach, gram, undisturbed
from polyptych.types import Output

if TYPE_CHECKING:
    from polyptych.balancers._gradients import GramBalancer, JacobianBalancer


class Step:
    """The micro-batches of one step, and what is known of it so far.

    Each process has its own part of the batch; losses and gradients of the step are means over processes. A process
    whose part has no label for a task takes part in every exchange with zeros.

    Attributes:
        tasks: the active ones.
        losses: the sums over the micro-batches so far, detached.
        weights: of the active tasks, once they are known.
    """

    def __init__(self, balancer: GramBalancer, passes: Sequence[Pass], network: nn.Module, scale: float | Tensor,
                 active: Collection[str] | None):
        self.balancer, self.passes, self.network, self.scale = balancer, passes, network, scale
        self.config = balancer.config
        self.tasks = tuple(task for task in balancer.tasks if active is None or task in active)
        self.losses: dict[str, Tensor] = {}
        self.weights: dict[str, float] = {}
        self.reach: Reach

    def run(self) -> None:
        """Add the gradients of the step to ``.grad``."""
        before = [(p, p.grad.clone()) for p in self.network.parameters() if p.grad is not None]
        for parameter, _ in before:
            parameter.grad = None
        if not self.tasks:
            self._backward_nothing()
        elif (kept := self.balancer.kept(self.tasks)) is not None:
            self._backward_weighted(kept)
        elif not self.balancer.needs_gram:
            self._by_survey()
        elif self.config.level == "parameters":
            self._by_rows()
        elif self.config.level == "representation" and (len(self.passes) == 1 or self.balancer.takes_rows):
            self._through_the_cut()
        else:
            self._by_survey()
        if self.tasks and self.config.clip_shared:
            self._clip(self.config.clip_shared)
        for parameter, gradient in before:
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)

    def _backward_nothing(self) -> None:
        """No task is active: zeros, so that optimizer and loss scaling have something to look at."""
        for run in self.passes:
            losses, _ = self._forward(run)
            if ends := [loss for loss in losses.values() if loss.requires_grad]:
                (torch.stack(ends).sum() * 0).backward()
        self._average()

    def _forward(self, run: Pass) -> tuple[dict[str, Tensor], Output | None]:
        losses, output = run()
        self.losses = add(self.losses, losses)
        self.reach = self.balancer.reach_of(self.network, losses, output)
        return losses, output

    # -- parameters ----------------------------------------------------------------------------------------------

    def _by_rows(self) -> None:
        """Rows of all micro-batches, their inner products, and their weighed sum without another backward pass."""
        balancer = self.balancer
        for number, run in enumerate(self.passes):
            self._add_rows(run, number)
        rows, scale = balancer.rows, float(self.scale)
        distributed.average_([rows.flat])
        if balancer.takes_rows:
            method = cast("JacobianBalancer", balancer)
            direction, weights = method.direction(rows.flat.div_(scale), self._mean_losses(), self.tasks)
            rows.flat[0].copy_(direction).mul_(scale)
        else:
            weights = balancer.weights_of(gram(list(rows.flat)) / scale**2, self._mean_losses(), self.tasks)
            rows.combine(weights)
        rows.hand_over()
        self._set(weights)
        for task in self.tasks:
            found = [p.grad for p in self.reach.private[task] if p.grad is not None]
            if found and self.weights[task] != 1 and self.config.weight_heads:
                torch._foreach_mul_(found, self.weights[task])
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
        """Each task's gradient goes as far as the cut, and one combined gradient from there."""
        for run in self.passes:
            losses, output = self._forward(run)
            cut = self._cut(output)
            ends = {task: [*cut, *self.reach.heads[task]] for task in self.tasks}
            found = {task: self._gradients(losses[task], ends[task]) for task in self.tasks}
            maps = [[_or_zero(found[task][k], z) for task in self.tasks] for k, z in enumerate(cut)]
            combined = self._combine_maps(cut, maps)
            for task in self.tasks:
                factor = self.weights[task] if self.config.weight_heads else 1.0
                for parameter, gradient in zip(ends[task][len(cut):], found[task][len(cut):], strict=True):
                    if gradient is not None:
                        gradient = gradient if factor == 1 else gradient * factor
                        parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            del losses, output, found, maps  # the heads' memory is free while the trunk needs its own
            torch.autograd.backward(cut, combined)
        self._average()

    def _combine_maps(self, cut: list[Tensor], maps: list[list[Tensor]]) -> list[Tensor]:
        if self.balancer.takes_rows:
            scale = float(self.scale)
            rows = [torch.stack(of_tasks) / scale for of_tasks in maps]
            method = cast("JacobianBalancer", self.balancer)
            combined, weights = method.direction_of_maps([z.detach() for z in cut], rows, self._mean_losses(),
                                                         self.tasks)
            self._set(weights)
            return [(x * scale).to(z.dtype) for x, z in zip(combined, cut, strict=True)]
        self._set(self.balancer.weights_of(self._inner(maps), self._mean_losses(), self.tasks))
        for of_tasks in maps:
            first = of_tasks[0].mul_(self.weights[self.tasks[0]])
            for task, x in zip(self.tasks[1:], of_tasks[1:], strict=True):
                first.add_(x, alpha=self.weights[task])
        return [of_tasks[0] for of_tasks in maps]

    def _cut(self, output: Output | None) -> list[Tensor]:
        """The tensors at the cut through which gradients reach the trunk."""
        return [z for z in output.shared if z.requires_grad] if output is not None else []

    def _inner(self, maps: list[list[Tensor]]) -> Tensor:
        """Inner products sample by sample, added up over samples, maps and processes."""
        local = torch.stack([gram([x.flatten() for x in of_tasks]) for of_tasks in maps]).sum(0)
        return distributed.total(local) / (distributed.world() * float(self.scale)) ** 2

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
        if self.config.level == "layer" and self.balancer.needs_gram:
            rows = distributed.mean(inner)
            inner = gram(list(rows)) / float(self.scale) ** 2
        weights = self.balancer.weights_of(inner, self._mean_losses(), self.tasks)
        self.passes, self.losses = again, {}
        self._backward_weighted(weights)

    def _survey(self, losses: dict[str, Tensor], output: Output | None) -> Tensor:
        """What adds up over micro-batches: inner products at the cut, or the rows of the last shared layer. (Nothing
        where the losses are all that is asked for.)"""
        if not self.balancer.needs_gram:
            size, first = len(self.tasks), losses[self.tasks[0]]
            return torch.zeros(size, size, dtype=torch.float64, device=first.device)
        layer = self.config.level == "layer"
        ends = list(self.reach.layer) if layer else self._cut(output)
        found = [[_or_zero(x, end) for x, end in zip(self._gradients(losses[task], ends), ends, strict=True)]
                 for task in self.tasks]
        if layer:
            return torch.stack([torch.cat([x.flatten() for x in row]) for row in found])
        return self._inner([list(of_tasks) for of_tasks in zip(*found, strict=True)])

    def _backward_weighted(self, weights: list[float]) -> None:
        """One ordinary backward pass for every micro-batch. (Two through the heads if these are not weighed.)"""
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
            weighed = self.reach.trunk if self.config.level == "representation" else self.reach.shared
            inside = {id(p) for p in weighed}
            rest = [p for p in self.reach.all if id(p) not in inside]
            whole.backward(inputs=weighed, retain_graph=bool(rest))
            if rest:
                torch.stack(list(present.values())).sum().backward(inputs=rest)
        self._average()

    # -- parts ---------------------------------------------------------------------------------------------------

    def _gradients(self, loss: Tensor, ends: Sequence[Tensor]) -> Sequence[Tensor | None]:
        if not loss.requires_grad:
            return [None] * len(ends)
        return torch.autograd.grad(loss * self.scale, ends, retain_graph=True, allow_unused=True)

    def _mean_losses(self) -> Tensor:
        return distributed.mean(torch.stack([self.losses[task] for task in self.tasks]))

    def _set(self, weights: Sequence[float]) -> None:
        self.weights = dict(zip(self.tasks, weights, strict=True))

    def _average(self) -> None:
        distributed.average_gradients(self.reach.all)

    def _clip(self, largest: float) -> None:
        found = [p.grad for p in self.reach.shared if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(found) / self.scale
        torch.nn.utils.clip_grads_with_norm_(self.reach.shared, largest, norm)


def _or_zero(gradient: Tensor | None, end: Tensor) -> Tensor:
    return torch.zeros_like(end) if gradient is None else gradient
