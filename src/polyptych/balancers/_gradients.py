"""Balancers that compare the gradients of tasks."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyptych import devices, distributed
from polyptych.balancers._base import NO_SUM, Balancer, Pass
from polyptych.balancers._engine import (
    Reach,
    Rows,
    Sharing,
    check_branches,
    check_whole,
    gram,
    gram_of_maps,
    keep_graphs,
    predictions,
    unscaled,
)
from polyptych.balancers._gradient_steps import Step
from polyptych.balancers._preferences import PreferredPasses, PreferringBalancer, weighing_config
from polyptych.balancers._task_numbers import numbers
from polyptych.errors import InputError
from polyptych.types import Likelihood, Output

Level = Literal["parameters", "representation", "layer"]


class GramBalancer(PreferringBalancer):
    """Weights are a function of the inner products of the tasks' gradients (the Gram matrix).

    The *level* says where the gradients are taken. Its cost for K tasks is counted in forward passes (F), backward
    passes through all heads (H), and backward passes through the trunk (T):

    - ``parameters``: all parameters that several tasks share. Exact; F + H + K T, and K rows of memory.
    - ``representation``: the features at the cut ``Output.shared``, sample by sample. An approximation that leaves out
      the Jacobian of the trunk; F + H + T, hardly more than equal weights.
    - ``layer``: the last layer that all tasks share. An approximation; slightly more than F + 2 H + T.

    Heads (parameters of one task) get weighted gradients, or unweighted ones without ``weight_heads``. With gradient
    accumulation, the levels ``representation`` and ``layer`` run every micro-batch twice, because the weights of the
    first depend on the last. A step whose inner products or weights are not finite uses equal weights and counts in
    ``fallbacks``. Gradients that overflow under loss scaling (float16) are no such failure: the scaler skips the step
    and lowers its scale, and the diagnostics omit the norms.

    State stays on the CPU, whatever ``to`` says: the problems are as small as K x K.

    Attributes:
        needs_gram: whether ``solve`` reads the inner products; if not, it gets zeros, at the cost of equal weights.
        combines_gradients: whether the method needs the gradients themselves.
        level: where gradients are taken: the configured level, or what remains possible in a network with frozen
            parts; None if tasks share nothing that learns.
    """

    one_backward = False
    needs_gram: bool = True
    combines_gradients: bool = False
    splits: int = 1

    @dataclass(frozen=True, kw_only=True)
    class Config(Balancer.Config):
        level: Level = "parameters"
        """Gradients of all shared parameters, of the shared features, or of the last shared layer."""
        every: int = 1
        """Steps between updates of the weights. Steps without an update cost as much as equal weights; a task that had
        no labels at the last update triggers a new one when it has some."""
        sum_to: Literal["native", "mean", "sum"] = "native"
        """Sum of the weights: as the method gives it (native), 1 (mean), or the number of tasks (sum)."""
        weight_heads: bool = True
        """Apply task weights also to the parameters that belong to one task alone."""
        clip_shared: float = 0.0
        """Maximum norm of the gradient of the shared parameters (0: no clipping)."""
        preferences: dict[str, float] = field(default_factory=dict)
        """Preference for each task (default: 1); higher values push the task's loss lower. docs/balancers.md says how
        they enter each method."""
        weighing: str = ""
        """Loss-weighting balancer, such as dwa or uncertainty, whose weights are preferences that change with every
        step (default: none)."""
        weighing_options: dict[str, float] = field(default_factory=dict)
        """Numeric options of that balancer, by name, where they differ from its defaults."""

        def build(self, *, standard_weights: dict[str, float],
                  likelihoods: Mapping[str, Likelihood] | None = None) -> Balancer:
            made = super().build(standard_weights=standard_weights, likelihoods=likelihoods)
            assert isinstance(made, GramBalancer)
            if self.preferences or self.weighing:
                made.refuse_preferences("weighing" if self.weighing else "preferences")
            if self.weighing:
                weighing = weighing_config(self.weighing, self.weighing_options)
                made.weigh_by(weighing.build(standard_weights=standard_weights, likelihoods=likelihoods))
            return made

        def __post_init__(self) -> None:
            if self.every < 1:
                raise InputError("--balancer.every", str(self.every), "1 or more", "raise it")
            if not (self.clip_shared >= 0 and math.isfinite(self.clip_shared)):
                raise InputError("--balancer.clip-shared", str(self.clip_shared), "a number of at least 0",
                                 "use 0 for no clipping")

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        self.config = config
        keep_graphs()
        self._sharing = Sharing()
        self._rows: Rows | None = None
        self._scaled = False
        self.level: Level | None = config.level
        self.prefer(config.preferences)
        self.register_buffer("kept_weights", numbers(self.tasks, torch.inf))  # inf: not part of the last computation

    kept_weights: Tensor

    def solve(self, gram: Float[Tensor, "t t"], losses: Float[Tensor, " t"],
              tasks: tuple[str, ...]) -> Float[Tensor, " t"]:
        """The weights (t) of the active tasks.

        Args:
            gram: inner products of their gradients; float64 on the CPU, finite, the same in every process.
            losses: float64 on the CPU, the same in every process.
            tasks: their names; ``self.positions(tasks)`` are their rows in a state.
        """
        raise NotImplementedError(f"{type(self).__name__} has no solve")

    # -- what a step does ----------------------------------------------------------------------------------------

    def prepare(self, network: nn.Module, output: Output) -> None:
        self._sharing = Sharing()
        self.reach = None
        self.follow(network, predictions(output), output.shared)

    def backward(self, losses: dict[str, Float[Tensor, ""]], network: nn.Module, output: Output | None = None,
                 scale: float | Tensor = 1.0, active: Collection[str] | None = None) -> dict[str, float | Tensor]:
        return self.accumulate([lambda: (losses, output)], network, scale, active)[1]

    def accumulate(self, passes: Sequence[Pass], network: nn.Module, scale: float | Tensor = 1.0,
                   active: Collection[str] | None = None) -> tuple[dict[str, Tensor], dict[str, float | Tensor]]:
        if isinstance(network, nn.parallel.DistributedDataParallel):
            check_whole(network)
        active = self.check_active(active)
        if len(passes) % self.splits:
            raise InputError("--accumulate", str(len(passes)), f"a multiple of {self.splits}, because this method "
                             "compares independent parts of a step", "choose such a number")
        self.begin()
        self._scaled = isinstance(scale, Tensor) or scale != 1
        passes = [partial(self.checked, run, active) for run in passes]
        preferred = PreferredPasses(self, passes, network, scale, active)
        step = Step(self, preferred.passes, network, scale, active)
        step.run()
        self.steps += 1
        self.diagnostics["fallbacks"] = self.fallbacks
        weights: dict[str, float | Tensor] = {task: step.weights.get(task, 0.0) for task in step.losses}
        return preferred.finish(step.losses, weights)

    def follow(self, network: nn.Module, ends: dict[str, list[Tensor]], cut: Sequence[Tensor]) -> Reach:
        """Which parameters are shared, given the graph of one more pass."""
        before = self.reach
        if before is None and (missing := [task for task in self.tasks
                                           if not any(x.requires_grad for x in ends.get(task, ()))]):
            raise InputError("the first step of a balancer", f"nothing to differentiate for {', '.join(missing)}",
                             "a prediction of every task", "call balancer.prepare(network, output) once before it")
        found = self._sharing.follow(network, {task: ends.get(task, []) for task in self.tasks}, cut)
        if found is not before:
            if self.needs_gram:
                self._find_level(network, found)
                if self.level == "representation":
                    check_branches(cut)
            self.reach = found
            if found.shared:
                self.allocate(sum(p.numel() for p in found.shared), found.shared[0].device)
        return found

    def _find_level(self, network: nn.Module, found: Reach) -> None:
        """Freezing may leave the level without parameters. The method then compares gradients of the parameters that
        tasks still share (those of an interacting decoder); if there are none, tasks have equal weights."""
        self.level, self.remark = self.config.level, ""
        if all(p.requires_grad for p in network.parameters()):
            self._refuse_nothing(found)
        elif not found.shared:
            self.level = None
            self.remark = "all parameters that tasks share are frozen, so there is nothing to balance: every task " \
                          "has weight 1"
        elif (self.level == "representation" and not found.trunk) or (self.level == "layer" and not found.layer):
            self.level = "parameters"
            self.remark = f"no trainable parameter is left at --balancer.level {self.config.level}: the gradients of " \
                          "all parameters that tasks still share are compared instead"
        else:
            self._refuse_nothing(found)

    def _refuse_nothing(self, found: Reach) -> None:
        """Refuse a level at which this network has nothing to compare: the method would silently do nothing."""
        level = self.config.level
        if not found.shared:
            raise InputError("--balancer.level", f"{level}, but no trainable parameter is shared by two tasks",
                             "a shared trunk", "choose --encoder shared, unfreeze the trunk, or take --balancer equal")
        if level == "representation" and not found.trunk:
            raise InputError("--balancer.level", "representation, but the encoder shares no trained features "
                             "(Output.shared)", "shared features", "choose --balancer.level parameters")
        before = {id(p) for p in found.trunk}
        if level == "representation" and any(id(p) in before for own in found.heads.values() for p in own):
            raise InputError("--balancer.level", "representation, but a parameter is used before and after the cut",
                             "a trunk that shares no parameter with the heads", "choose --balancer.level parameters")
        if level == "layer" and not found.layer:
            raise InputError("--balancer.level", "layer, but no layer is shared by all tasks", "a shared layer",
                             "choose --balancer.level parameters")

    def allocate(self, parameters: int, device: torch.device) -> None:
        """Called before the first step, once the number of shared parameters is known, and whenever they change."""

    def clear_rows(self, parameters: tuple[nn.Parameter, ...], count: int) -> None:
        """Fill ``rows``, the buffer that lasts from step to step, with zeros."""
        if self._rows is None or not self._rows.fit(parameters, count):
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
        """:meth:`solve` with its guards and diagnostics, on the requested scale."""
        size = len(tasks)
        host = torch.cat([inner.flatten(), losses.to(inner)]).cpu().double()  # the only copy to the host
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

    def merge_rows(self, scale: float | Tensor, losses: Float[Tensor, " t"],
                   tasks: tuple[str, ...]) -> list[float] | list[Tensor]:
        """Combine the gradients in ``rows``, which carry the scale of the losses, in the first row.

        Returns:
            The weights of the tasks.
        """
        weights = self.weights_of(unscaled(gram(list(self.rows.flat)), scale), losses, tasks)
        self.rows.combine(weights)
        return weights

    def merge_maps(self, cut: Sequence[Tensor], maps: Sequence[list[Tensor]], scale: float | Tensor,
                   losses: Float[Tensor, " t"], tasks: tuple[str, ...]) -> tuple[list[Tensor], list[float]]:
        """Combine the gradients of the shared features.

        Args:
            cut: the features.
            maps: by feature map, the gradient of each task, times the scale of the losses. May be written to.

        Returns:
            The combined gradient of every map, on the same scale, and the weights of the tasks.
        """
        weights = self.weights_of(gram_of_maps(maps, scale), losses, tasks)
        for of_tasks in maps:
            first = of_tasks[0].mul_(weights[0])
            for weight, x in zip(weights[1:], of_tasks[1:], strict=True):
                first.add_(x, alpha=weight)
        return [of_tasks[0] for of_tasks in maps], weights

    def promised(self, count: int) -> float | None:
        """The required sum of the weights of ``count`` active tasks, or None if it is free."""
        return {"native": None, "mean": 1.0, "sum": float(count)}[self.config.sum_to]

    def kept(self, tasks: tuple[str, ...]) -> list[float] | None:
        """The weights of the last step that computed them, scaled to the promised sum if only some of its tasks are
        active; None if new ones are due, or if a task has none."""
        found, promised = self.kept_weights[self.positions(tasks)], self.promised(len(tasks))
        if self.steps % self.config.every == 0 or not bool(found.isfinite().all()):
            return None
        if promised is not None and len(tasks) < int(self.kept_weights.isfinite().sum()):
            if float(found.sum()) <= NO_SUM:
                return None
            found = found * (promised / found.sum())
        return found.tolist()

    def _overflowed(self, inner: Float[Tensor, "t t"], losses: Float[Tensor, " t"]) -> bool:
        """Whether loss scaling made gradients overflow float16, in which case the scaler skips the step anyway."""
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
        if self.weighing is not None:  # computes with losses, on their device
            self.weighing._apply(fn, recurse)
        return self  # see the docstring: state stays on the CPU


class JacobianBalancer(GramBalancer):
    """Methods that need the gradients themselves, not only their inner products.

    At the level ``representation``, :meth:`combine_maps` gets the features and their gradients, separately for every
    micro-batch and process. The level ``layer`` does not exist here.

    Attributes:
        splits: number of independent parts of a step, to which micro-batches go in turn. If more than one, ``combine``
            gets rows (splits t p), and ``--accumulate`` must be a multiple of it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(GramBalancer.Config):
        def __post_init__(self) -> None:
            super().__post_init__()
            if self.level == "layer":
                raise InputError("--balancer.level", "layer", "parameters or representation, because this method "
                                 "combines the gradients themselves", "choose one of these")
            if self.every > 1:
                raise InputError("--balancer.every", str(self.every), "1: this method has no weights to keep",
                                 "leave it out")
            if self.sum_to != "native":
                raise InputError("--balancer.sum-to", self.sum_to, "native, because this method computes a "
                                 "direction, not weights", "leave it out")

    combines_gradients = True

    def combine(self, rows: Float[Tensor, "*s t p"], losses: Float[Tensor, " t"],
                tasks: tuple[str, ...]) -> tuple[Float[Tensor, " p"], Float[Tensor, " t"]]:
        """The gradient (p) of the shared parameters, and a weight (t) per task for its own parameters and the log.

        Args:
            rows: gradients of the active tasks, on the device, averaged over processes. Do not write to them.
            losses: float64 on the CPU.
        """
        raise NotImplementedError(f"{type(self).__name__} has no combine")

    def combine_maps(self, maps: Sequence[Float[Tensor, "b _ _ _"]], rows: Sequence[Float[Tensor, "t b _ _ _"]],
                     losses: Float[Tensor, " t"],
                     tasks: tuple[str, ...]) -> tuple[list[Tensor], Float[Tensor, " t"]]:
        """:meth:`combine` for the shared features: one gradient for every map. Use
        :func:`polyptych.distributed.total` for sums over the batch that must span processes."""
        raise InputError("--balancer.level", "representation", "parameters, because this method keeps gradients "
                         "across steps, and features differ from step to step", "choose --balancer.level parameters")

    def direction(self, rows: Float[Tensor, "r p"], losses: Float[Tensor, " t"],
                  tasks: tuple[str, ...]) -> tuple[Float[Tensor, " p"], list[float] | list[Tensor]]:
        """:meth:`combine` with its guards and diagnostics; the plain sum if something is not finite."""
        size, inner = len(tasks), gram(list(rows[:len(tasks)]))
        parts = rows.unflatten(0, (self.splits, size)) if self.splits > 1 else rows
        asked = self.ask(parts, losses, tasks)
        # The only copy to the host, which waits for it.
        host = torch.cat([inner.flatten(), losses.to(inner), asked.flatten().to(inner)]).cpu().double()
        inner, losses, asked = host[:size**2].reshape(size, size), host[size**2:][:size], host[size**2 + size:]
        if self._overflowed(inner, losses):
            return rows.sum(0), [1.0] * size
        self._watch(inner, tasks)
        if bool(torch.isfinite(inner).all() & torch.isfinite(losses).all()):
            self.answer = asked
            found, weights = self.combine(parts, losses, tasks)
            if bool(torch.isfinite(weights).all()):
                return self._finite(found, weights, rows, tasks)
        return rows.sum(0), self._fall_back(tasks)

    def merge_rows(self, scale: float | Tensor, losses: Float[Tensor, " t"],
                   tasks: tuple[str, ...]) -> list[float] | list[Tensor]:
        rows = self.rows.flat
        direction, weights = self.direction(rows.div_(scale), losses, tasks)
        rows[0].copy_(direction).mul_(scale)
        return weights

    def merge_maps(self, cut: Sequence[Tensor], maps: Sequence[list[Tensor]], scale: float | Tensor,
                   losses: Float[Tensor, " t"], tasks: tuple[str, ...]) -> tuple[list[Tensor], list[float]]:
        rows = [torch.stack(of_tasks) / scale for of_tasks in maps]
        combined, weights = self.direction_of_maps([z.detach() for z in cut], rows, losses, tasks)
        return [(x * scale).to(z.dtype) for x, z in zip(combined, cut, strict=True)], weights

    def ask(self, rows: Float[Tensor, "*s t p"], losses: Float[Tensor, " t"], tasks: tuple[str, ...]) -> Tensor:
        """Numbers that :meth:`combine` needs on the host, where it finds them in ``answer`` (flat, float64). They
        travel with the inner products, so that the host waits only once. Do not change state here: the rows may not be
        finite."""
        return rows.new_zeros(0)

    def _finite(self, found: Float[Tensor, " p"], weights: Float[Tensor, " t"], rows: Float[Tensor, "r p"],
                tasks: tuple[str, ...]) -> tuple[Float[Tensor, " p"], list[float] | list[Tensor]]:
        """Replace a combination that is not finite with equal weights. An accelerator decides this by itself: the
        weights are then tensors, and the host does not wait for them."""
        good = torch.isfinite(found).all()
        if found.device.type == "cpu":
            return (found, weights.tolist()) if bool(good) else (rows.sum(0), self._fall_back(tasks))
        self.fallbacks = self.fallbacks + (~good).long()
        there = devices.sent(weights, found.device, found.dtype)
        return torch.where(good, found, rows.sum(0)), [*torch.where(good, there, 1).unbind()]

    def direction_of_maps(self, maps: Sequence[Tensor], rows: Sequence[Tensor], losses: Float[Tensor, " t"],
                          tasks: tuple[str, ...]) -> tuple[list[Tensor], list[float]]:
        """:meth:`combine_maps` with the same guards."""
        size, inner = len(tasks), gram_of_maps(rows)
        host = torch.cat([inner.flatten(), losses.to(inner)]).cpu().double()  # the only copy to the host
        inner, losses = host[:-size].reshape(size, size), host[-size:]
        if self._overflowed(inner, losses):
            return [of_tasks.sum(0) for of_tasks in rows], [1.0] * size
        self._watch(inner, tasks)
        if bool(torch.isfinite(inner).all() & torch.isfinite(losses).all()):
            found, weights = self.combine_maps(maps, rows, losses, tasks)
            return found, weights.tolist()
        return [of_tasks.sum(0) for of_tasks in rows], self._fall_back(tasks)
