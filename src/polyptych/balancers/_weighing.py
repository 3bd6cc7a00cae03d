"""Balancers that weight losses and run one ordinary backward pass."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyptych import distributed
from polyptych.balancers._base import NO_SUM, Balancer, Pass, add
from polyptych.balancers._engine import undisturbed
from polyptych.types import Output


class LossBalancer(Balancer):
    """Weights are a function of the losses: ``sum_t weight_t * loss_t``. A subclass implements :meth:`weigh`, or, if it
    learns parameters, :meth:`objective`.

    The weights depend on the losses of the whole step. With gradient accumulation these are known only after the last
    forward pass, so every micro-batch runs twice, the first time without gradients. A subclass whose weights do not
    depend on the current losses sets ``needs_losses`` to False, which saves the first run. Processes agree on the
    weights because each sees the mean of all losses.
    """

    needs_losses: bool = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Balancer.Config):
        sum_to: Literal["native", "mean", "sum"] = "native"
        """Sum of the weights: as the method gives it (native), 1 (mean), or the number of tasks (sum)."""

    def __init__(self, config: Config | None = None, *, standard_weights: dict[str, float] | None = None):
        super().__init__(config, standard_weights=standard_weights)
        self.sum_to = config.sum_to if config is not None else "native"

    def weigh(self, losses: Float[Tensor, " t"], tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        """Constant weights (t) for a step.

        Args:
            losses: of the active tasks, detached, float32 or float64, on the device, the same in every process;
                without ``needs_losses``, those of the first micro-batch only.
            tasks: their names.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither weigh nor objective")

    def objective(self, losses: dict[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        """The objective, a differentiable function of the losses of the active tasks and of this balancer's parameters.
        Its derivatives with respect to the losses are the weights. By default, the sum weighted by :meth:`weigh`."""
        vector = torch.stack(list(losses.values()))
        return (self.weigh(vector.detach(), tuple(losses)) * vector).sum()

    def backward(self, losses: dict[str, Float[Tensor, ""]], network: nn.Module, output: Output | None = None,
                 scale: float | Tensor = 1.0, active: Collection[str] | None = None) -> dict[str, float | Tensor]:
        return self.accumulate([lambda: (losses, output)], network, scale, active)[1]

    def accumulate(self, passes: Sequence[Pass], network: nn.Module, scale: float | Tensor = 1.0,
                   active: Collection[str] | None = None) -> tuple[dict[str, Tensor], dict[str, float | Tensor]]:
        active = self.check_active(active)
        passes = [partial(self.checked, run, active) for run in passes]
        self.begin()
        weights: dict[str, Tensor] | None = None
        if len(passes) > 1 and self.needs_losses:
            known: dict[str, Tensor] = {}
            with undisturbed(network), torch.no_grad():
                for run in passes:
                    known = add(known, run()[0])
            weights = self._weights(known, scale, active)
        total: dict[str, Tensor] = {}
        for run in passes:
            losses, _ = run()
            weights = self._weights(losses, scale, active) if weights is None else weights
            # Inactive tasks take part with weight 0: DistributedDataParallel waits for the gradients of their heads.
            (torch.stack([weights[task] * loss for task, loss in losses.items()]).sum() * scale).backward()
            total = add(total, losses)
        self.steps += 1
        return total, {**(weights or {})}

    def _weights(self, losses: dict[str, Tensor], scale: float | Tensor,
                 active: Collection[str] | None) -> dict[str, Tensor]:
        """The derivatives of the objective with respect to the losses; those with respect to this balancer's parameters
        go to ``.grad``."""
        tasks = tuple(task for task in losses if active is None or task in active)
        none = {task: torch.zeros_like(loss.detach()) for task, loss in losses.items()}
        if not tasks:
            return none
        whole = distributed.mean(torch.stack([losses[task].detach() for task in tasks])).requires_grad_()
        own = list(self.parameters())
        with torch.enable_grad():
            objective = self.objective(dict(zip(tasks, whole.unbind(), strict=True)))
        weights, *gradients = torch.autograd.grad(objective, [whole, *own], allow_unused=True)
        if self.sum_to != "native":
            total, promised = weights.sum(), 1 if self.sum_to == "mean" else len(tasks)
            weights = torch.where(total > NO_SUM, weights * promised / total, weights)
        finite = torch.isfinite(weights).all()
        for parameter, gradient in zip(own, gradients, strict=True):
            if gradient is not None:
                gradient = torch.where(finite & torch.isfinite(gradient), gradient, 0) * scale
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self._count(finite)
        return none | dict(zip(tasks, torch.where(finite, weights, torch.ones_like(weights)).unbind(), strict=True))

    def _count(self, finite: Tensor) -> None:
        """Count a step that used equal weights because the method's were not finite. The count stays on the device."""
        self.fallbacks = self.fallbacks + (~finite).long()
        self.diagnostics["fallbacks"] = self.fallbacks
