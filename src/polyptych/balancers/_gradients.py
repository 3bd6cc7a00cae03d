"""Balancers that compare the gradients of the tasks."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyptych import distributed
from polyptych.balancers._base import NO_SUM, Balancer, Pass
from polyptych.balancers._engine import Reach, Rows, check_branches, gram, keep_graphs, predictions, reach
from polyptych.balancers._step import Step
from polyptych.balancers._task_numbers import numbers
from polyptych.errors import InputError
from polyptych.types import Output

Level = Literal["parameters", "representation", "layer"]


class GramBalancer(Balancer):
    """Weights are a function of the inner products of the tasks' gradients (the Gram matrix).

    Where the gradients are taken is the *level*; K tasks, F forward, H all heads backward, T trunk backward:

    - ``parameters``: of all parameters that several tasks share. Exact, F + H + K T, K rows of memory.
    - ``representation``: of the features at the cut ``Output.shared``, sample by sample. An approximation (it leaves
      out the Jacobian of the trunk), F + H + T, hardly more than equal weights.
    - ``layer``: of the last layer that all tasks share. An approximation, F + 2 H + T and a little.

    Heads (parameters of one task) get gradients with the task's weight, or as they are without ``weight_heads``. With
    gradient accumulation the levels ``representation`` and ``layer`` run every micro-batch twice, because the weights
    of the first one depend on the last one. A step whose inner products or weights are not finite has equal weights and
    is counted in ``fallbacks``. Where losses are scaled (float16) it is the scaler's business if gradients overflow: it
    leaves the step out and lowers its scale, so that is no failure, and norms that say nothing are not shown.

    State stays on the CPU, whatever ``to`` says: the problems are as small as K x K.

    Attributes:
        needs_gram: whether ``solve`` looks at inner products; where not, it gets zeros at the cost of equal weights.
    """

    one_backward = False
    takes_rows: ClassVar[bool] = False
    needs_gram: bool = True
    splits: int = 1

    @dataclass(frozen=True, kw_only=True)
    class Config(Balancer.Config):
        level: Level = "parameters"
        """Gradients of all shared parameters, of the shared features, or of the last shared layer."""
        every: int = 1
        """Steps between two computations of the weights; those between keep them, at the cost of equal weights, unless
        a task has labels that had none then."""
        sum_to: Literal["native", "mean", "sum"] = "native"
        """Scale of the weights: the method's own, a sum of 1, or a sum of the number of tasks."""
        weight_heads: bool = True
        """Whether the parameters of one task alone get its weight too."""
        clip_shared: float = 0.0
        """Largest norm of the gradient of the shared parameters; 0 does not clip."""

        def __post_init__(self) -> None:
            if self.every < 1:
                raise InputError("--balancer.every", str(self.every), "1 or more", "raise it")
            if not (self.clip_shared >= 0 and math.isfinite(self.clip_shared)):
                raise InputError("--balancer.clip-shared", str(self.clip_shared), "a number of at least 0", "change it")

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        self.config = config
        keep_graphs()
        self._rows: Rows | None = None
        self._scaled = False
        self.register_buffer("kept_weights", numbers(self.tasks, torch.inf))  # inf: took no part in the computation

    kept_weights: Tensor

    def solve(self, gram: Float[Tensor, "t t"], losses: Float[Tensor, " t"],
              tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        """The weights of the active tasks.

        Args:
            gram: inner products of their gradients; float64 on the CPU, finite, the same in every process.
            losses: float64 on the CPU, the same in every process.
            tasks: their names; ``self.positions(tasks)`` are their rows in a state.
        """
        raise NotImplementedError(f"{type(self).__name__} has no solve")

    # -- what a step does ----------------------------------------------------------------------------------------

    def prepare(self, network: nn.Module, output: Output) -> None:
        self._measure(network, predictions(output), output.shared)

    def backward(self, losses: dict[str, Float[Tensor, ""]], network: nn.Module, output: Output | None = None,
                 scale: float | Tensor = 1.0, active: Collection[str] | None = None) -> dict[str, float | Tensor]:
        return self.accumulate([lambda: (losses, output)], network, scale, active)[1]

    def accumulate(self, passes: Sequence[Pass], network: nn.Module, scale: float | Tensor = 1.0,
                   active: Collection[str] | None = None) -> tuple[dict[str, Tensor], dict[str, float | Tensor]]:
        if isinstance(network, nn.parallel.DistributedDataParallel):
            raise InputError("the network of a gradient balancer", "DistributedDataParallel",
                             "the bare network, whose gradients the balancer averages itself",
                             "pass `network.module`, also in the forward pass")
        if len(passes) % self.splits:
            raise InputError("--accumulate", str(len(passes)), f"a multiple of {self.splits}, because this method "
                             "compares independent parts of a step", "change it")
        self.begin()
        self._scaled = isinstance(scale, Tensor) or scale != 1
        step = Step(self, passes, network, scale, active)
        step.run()
        self.steps += 1
        self.diagnostics["fallbacks"] = self.fallbacks
        return step.losses, {task: step.weights.get(task, 0.0) for task in step.losses}

    def reach_of(self, network: nn.Module, losses: dict[str, Tensor], output: Output | None) -> Reach:
        """Which parameters are shared, measured at the first call."""
        if self.reach is None:
            ends = predictions(output) if output is not None and output.final else {
                task: [loss] for task, loss in losses.items()}
            self._measure(network, ends, output.shared if output is not None else ())
        assert self.reach is not None
        return self.reach

    def _measure(self, network: nn.Module, ends: dict[str, list[Tensor]], cut: Sequence[Tensor]) -> None:
        if missing := [task for task in self.tasks if not any(x.requires_grad for x in ends.get(task, ()))]:
            raise InputError("the first step of a balancer", f"nothing to differentiate for {', '.join(missing)}",
                             "a prediction of every task", "call balancer.prepare(network, output) once before it")
        self.reach = reach(network, {task: ends[task] for task in self.tasks}, cut)
        self._refuse_nothing(self.reach)
        if self.config.level == "representation":
            check_branches(cut)
        self.allocate(sum(p.numel() for p in self.reach.shared), self.reach.shared[0].device)

    def _refuse_nothing(self, found: Reach) -> None:
        """On a level on which this network has nothing, a method would silently do nothing."""
        level = self.config.level
        if not found.shared:
            raise InputError("--balancer.level", f"{level}, but no trainable parameter is shared by two tasks",
                             "a shared trunk", "choose --encoder shared, unfreeze it, or --balancer equal")
        if level == "representation" and not found.trunk:
            raise InputError("--balancer.level", "representation, but the encoder shares no trained features "
                             "(Output.shared)", "shared features", "choose --balancer.level parameters")
        before = {id(p) for p in found.trunk}
        if level == "representation" and any(id(p) in before for own in found.heads.values() for p in own):
            raise InputError("--balancer.level", "representation, but a parameter is used before and after the cut",
                             "a trunk of its own", "choose --balancer.level parameters")
        if level == "layer" and not found.layer:
            raise InputError("--balancer.level", "layer, but no layer is shared by all tasks", "a shared layer",
                             "choose --balancer.level parameters")

    def allocate(self, parameters: int, device: torch.device) -> None:
        """Called once, when the number of shared parameters is known, before the first step."""

    def clear_rows(self, parameters: tuple[nn.Parameter, ...], count: int) -> None:
        """Zeros in ``rows``, the buffer that stays from step to step."""
        if self._rows is None or len(self._rows.flat) != count:
            self._rows = None  # frees before it allocates
            self._rows = Rows(parameters, count)
        else:
            self._rows.flat.zero_()

    @property
    def rows(self) -> Rows:
        assert self._rows is not None
        return self._rows

    # -- weights -------------------------------------------------------------------------------------------------

    def weights_of(self, inner: Float[Tensor, "t t"], losses: Float[Tensor, " t"],
                   tasks: tuple[str, ...]) -> list[float]:
        """:meth:`solve` with its guards and diagnostics, on the scale that was asked for."""
        size = len(tasks)
        host = torch.cat([inner.flatten(), losses.double()]).cpu()  # the only copy to the host
        inner, losses = host[:-size].reshape(size, size), host[-size:]
        if self._overflowed(inner, losses):
            return [1.0] * size
        if self.needs_gram:
            self._watch(inner, tasks)
        found = torch.full((size,), math.nan, dtype=torch.float64)
        if bool(torch.isfinite(host).all()):
            found = distributed.from_main(self.solve(inner, losses, tasks).double().cpu())
        if not bool(torch.isfinite(found).all()):
            return self._fall_back(tasks)
        total, promised = float(found.sum()), self.promised(size)
        if self.config.sum_to != "native" and promised and total > NO_SUM:
            found = found * (promised / total)
        self.kept_weights.fill_(torch.inf)
        self.kept_weights[self.positions(tasks)] = found
        return found.tolist()

    def promised(self, count: int) -> float | None:
        """What the weights of so many active tasks sum to, or None where that is free."""
        return {"native": None, "mean": 1.0, "sum": float(count)}[self.config.sum_to]

    def kept(self, tasks: tuple[str, ...]) -> list[float] | None:
        """The weights of the last step that computed them, scaled to the promised sum if only some of its tasks are
        active; None if it is time to compute them, or if there are none for these tasks."""
        found, promised = self.kept_weights[self.positions(tasks)], self.promised(len(tasks))
        if self.steps % self.config.every == 0 or not bool(found.isfinite().all()):
            return None
        if promised is not None and len(tasks) < int(self.kept_weights.isfinite().sum()):
            if float(found.sum()) <= NO_SUM:
                return None
            found = found * (promised / found.sum())
        return found.tolist()

    def _overflowed(self, inner: Float[Tensor, "t t"], losses: Float[Tensor, " t"]) -> bool:
        """Whether scaling made gradients too large for float16, which the scaler will see too."""
        return self._scaled and bool(losses.isfinite().all()) and not bool(inner.isfinite().all())

    def _fall_back(self, tasks: tuple[str, ...]) -> list[float]:
        self.fallbacks += 1
        return [1.0] * len(tasks)

    def _watch(self, inner: Float[Tensor, "t t"], tasks: tuple[str, ...]) -> None:
        norms = inner.diagonal().clamp(min=0).sqrt()
        cosines = inner / (norms[:, None] * norms).clamp(min=1e-300)
        self.diagnostics = {f"gradient_norm/{task}": float(norms[i]) for i, task in enumerate(tasks)}
        self.diagnostics |= {f"cosine/{a}/{b}": float(cosines[i, j]) for i, a in enumerate(tasks)
                             for j, b in enumerate(tasks) if i < j}

    def _apply(self, fn: Any, recurse: bool = True) -> GramBalancer:
        return self  # see the docstring: state stays where it was made


class JacobianBalancer(GramBalancer):
    """Methods that need the gradients themselves and not only their inner products.

    On the level ``representation`` :meth:`combine_maps` gets the features and their gradients; it runs for every
    micro-batch and process by itself. The level ``layer`` does not exist here.

    Attributes:
        splits: the step is divided into this many independent parts, micro-batches in turn, and ``combine`` gets rows
            (splits t p). ``--accumulate`` must then be a multiple of it.
    """

    takes_rows = True

    @dataclass(frozen=True, kw_only=True)
    class Config(GramBalancer.Config):
        def __post_init__(self) -> None:
            super().__post_init__()
            if self.level == "layer":
                raise InputError("--balancer.level", "layer", "parameters or representation", "change it")
            if self.every > 1:
                raise InputError("--balancer.every", str(self.every), "1: this method has no weights to keep",
                                 "leave it out")
            if self.sum_to != "native":
                raise InputError("--balancer.sum-to", self.sum_to, "native: this method makes a direction, not weights",
                                 "leave it out")

    def combine(self, rows: Float[Tensor, "*s t p"], losses: Float[Tensor, " t"],
                tasks: tuple[str, ...]) -> tuple[Float[Tensor, " p"], Float[Tensor, " t"]]:
        """The gradient of the shared parameters, and a weight for every task's own ones (and for the log).

        Args:
            rows: gradients of the active tasks, on the device, averaged over processes. Not to be written to.
            losses: float64 on the CPU.
        """
        raise NotImplementedError(f"{type(self).__name__} has no combine")

    def combine_maps(self, maps: Sequence[Float[Tensor, "b _ _ _"]], rows: Sequence[Float[Tensor, "t b _ _ _"]],
                     losses: Float[Tensor, " t"],
                     tasks: tuple[str, ...]) -> tuple[list[Tensor], Float[Tensor, " t"]]:
        """The same for the shared features: one gradient for every map. Sums over the batch that must span processes
        go through :func:`polyptych.distributed.total`."""
        raise InputError("--balancer.level", "representation", "parameters: this method keeps gradients from step to "
                         "step, and features have no identity over steps", "use --balancer.level parameters")

    def direction(self, rows: Float[Tensor, "r p"], losses: Float[Tensor, " t"],
                  tasks: tuple[str, ...]) -> tuple[Float[Tensor, " p"], list[float]]:
        """:meth:`combine` with its guards and diagnostics; the plain sum where something is not finite."""
        inner, host = gram(list(rows[:len(tasks)])).cpu(), losses.double().cpu()
        if self._overflowed(inner, host):
            return rows.sum(0), [1.0] * len(tasks)
        self._watch(inner, tasks)
        if bool(torch.isfinite(inner).all() & torch.isfinite(host).all()):
            parts = rows.unflatten(0, (self.splits, len(tasks))) if self.splits > 1 else rows
            found, weights = self.combine(parts, host, tasks)
            if bool(torch.isfinite(found).all()) and bool(torch.isfinite(weights).all()):
                return found, weights.tolist()
        return rows.sum(0), self._fall_back(tasks)

    def direction_of_maps(self, maps: Sequence[Tensor], rows: Sequence[Tensor], losses: Float[Tensor, " t"],
                          tasks: tuple[str, ...]) -> tuple[list[Tensor], list[float]]:
        """:meth:`combine_maps` with the same guards."""
        local = torch.stack([gram([x.flatten() for x in of_tasks]) for of_tasks in rows]).sum(0)
        inner, host = (distributed.total(local) / distributed.world() ** 2).cpu(), losses.double().cpu()
        if self._overflowed(inner, host):
            return [of_tasks.sum(0) for of_tasks in rows], [1.0] * len(tasks)
        self._watch(inner, tasks)
        if bool(torch.isfinite(inner).all() & torch.isfinite(host).all()):
            found, weights = self.combine_maps(maps, rows, host, tasks)
            return found, weights.tolist()
        return [of_tasks.sum(0) for of_tasks in rows], self._fall_back(tasks)
