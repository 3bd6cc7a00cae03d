"""Balancers that compare the gradients of the tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyptych import devices, distributed
from polyptych.balancers._base import NO_SUM, Balancer, Pass, add
from polyptych.balancers._engine import (
    Reach,
    Rows,
    Sharing,
    check_branches,
    check_whole,
    gram,
    keep_graphs,
    predictions,
    undisturbed,
)
from polyptych.balancers._task_numbers import check_known, check_number, numbers
from polyptych.balancers._weighing import LossBalancer
from polyptych.errors import InputError
from polyptych.record import chosen
from polyptych.types import Likelihood, Output

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

    **Preferences** are factors of the tasks, given (``preferences``) or found at every step by a balancer of losses
    (``weighing``); of both, the product. How they enter is the method's: they multiply the losses before their
    gradients are taken, heads included; or they stand in its equations; or the method gives the same step whatever the
    scale of a loss, and refuses them.

    Attributes:
        needs_gram: whether ``solve`` looks at inner products; where not, it gets zeros at the cost of equal weights.
        level: where gradients are taken: as configured, or what is left of it in a network with frozen parts; None
            where tasks share nothing that learns.
        preferring: ``losses``, ``problem`` or ``never``: how preferences enter.
        wishes: the preferences of the tasks in this step, where they stand in the problem.
    """

    one_backward = False
    needs_gram: bool = True
    splits: int = 1
    preferring: Literal["losses", "problem", "never"] = "losses"

    @dataclass(frozen=True, kw_only=True)
    class Config(Balancer.Config):
        level: Level = "parameters"
        """Gradients of all shared parameters, of the shared features, or of the last shared layer."""
        every: int = 1
        """Steps between updates of the weights. The steps between cost as much as equal weights do; a task that had no
        labels at the last update triggers a new one when it has some."""
        sum_to: Literal["native", "mean", "sum"] = "native"
        """Scale of the weights: as the method gives them, to a sum of 1, or to a sum of the number of tasks."""
        weight_heads: bool = True
        """Apply task weights also to the parameters that belong to one task alone."""
        clip_shared: float = 0.0
        """Maximum norm of the gradient of the shared parameters (0: no clipping)."""
        preferences: dict[str, float] = field(default_factory=dict)
        """Preference for each task (default: 1); higher values push the task's loss lower. docs/balancers.md says how
        they enter each method."""
        weighing: str = ""
        """Balancer of losses, such as dwa or uncertainty, whose weights are preferences that change with every step
        (default: none)."""
        weighing_options: dict[str, float] = field(default_factory=dict)
        """Numeric options of that balancer, by name, where they differ from its defaults."""

        def build(self, *, standard_weights: dict[str, float],
                  likelihoods: Mapping[str, Likelihood] | None = None) -> Balancer:
            made = super().build(standard_weights=standard_weights, likelihoods=likelihoods)
            assert isinstance(made, GramBalancer)
            if self.preferences or self.weighing:
                made.refuse_preferences()
            if self.weighing:
                made.weigh_by(weighing_of(self).build(standard_weights=standard_weights, likelihoods=likelihoods))
            return made

        def __post_init__(self) -> None:
            if self.every < 1:
                raise InputError("--balancer.every", str(self.every), "1 or more", "raise it")
            if not (self.clip_shared >= 0 and math.isfinite(self.clip_shared)):
                raise InputError("--balancer.clip-shared", str(self.clip_shared), "a number of at least 0", "change it")

    def __init__(self, config: Config, *, standard_weights: dict[str, float]):
        super().__init__(config, standard_weights=standard_weights)
        self.config = config
        keep_graphs()
        self._sharing = Sharing()
        self._rows: Rows | None = None
        self._scaled = False
        self.level: Level | None = config.level
        self.weighing: LossBalancer | None = None
        self.wishes: dict[str, float | Tensor] = {}
        check_known("preferences", config.preferences, self.tasks)
        for task, value in config.preferences.items():
            check_number(f"preferences of '{task}'", value, value > 0, "a number above 0")
        self.register_buffer("kept_weights", numbers(self.tasks, torch.inf))  # inf: took no part in the computation

    kept_weights: Tensor

    def weigh_by(self, weighing: Balancer) -> None:
        """Take the weights of a balancer of losses as preferences."""
        assert isinstance(weighing, LossBalancer)
        self.weighing, self.learning_rate_factor = weighing, weighing.learning_rate_factor
        self.wants_after_step = weighing.wants_after_step

    def after_step(self, again: Callable[[], dict[str, Tensor]]) -> None:
        if self.weighing is not None:
            self.weighing.after_step(again)

    def on_epoch_end(self, losses: dict[str, float]) -> None:
        if self.weighing is not None:
            self.weighing.on_epoch_end(losses)

    def on_validation(self, metrics: dict[str, dict[str, float]]) -> None:
        if self.weighing is not None:
            self.weighing.on_validation(metrics)

    def refuse_preferences(self) -> None:
        """Raises:
            InputError: preferences would change nothing.
        """
        if self.preferring == "never":
            raise InputError("balancer.weighing" if self.config.weighing else "balancer.preferences",
                             f"preferences for {type(self).__name__}", "a method whose step depends on the scale of "
                             "the losses", "leave them out, or choose another method, such as pcgrad or cagrad")

    def wished(self, tasks: Sequence[str]) -> Float[Tensor, " t"]:
        """The preferences that stand in the problem; ones unless given."""
        return torch.tensor([float(self.wishes.get(task, 1.0)) for task in tasks], dtype=torch.float64)

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
                             "compares independent parts of a step", "change it")
        self.begin()
        self._scaled = isinstance(scale, Tensor) or scale != 1
        passes = [partial(self.checked, run, active) for run in passes]
        wished = Preferring(self, passes, network, scale, active)
        step = Step(self, wished.passes, network, scale, active)
        step.run()
        self.steps += 1
        self.diagnostics["fallbacks"] = self.fallbacks
        weights: dict[str, float | Tensor] = {task: step.weights.get(task, 0.0) for task in step.losses}
        return wished.finish(step.losses, weights)

    def follow(self, network: nn.Module, ends: dict[str, list[Tensor]], cut: Sequence[Tensor]) -> Reach:
        """Which parameters are shared, now that there is the graph of one more pass."""
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
        """Where something is frozen, the level may have nothing left: then gradients of the parameters that tasks still
        share are compared, those of an interacting decoder, or, where there are none, tasks have equal weights."""
        self.level, self.remark = self.config.level, ""
        if all(p.requires_grad for p in network.parameters()):
            self._refuse_nothing(found)
        elif not found.shared:
            self.level = None
            self.remark = "all that tasks share is frozen, so there is nothing to balance: every task has weight 1"
        elif (self.level == "representation" and not found.trunk) or (self.level == "layer" and not found.layer):
            self.level = "parameters"
            self.remark = f"nothing that learns is left at --balancer.level {self.config.level}: those of all " \
                          "parameters that tasks still share are compared"
        else:
            self._refuse_nothing(found)

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
        """Called when the number of shared parameters is known, before the first step, and when they are others."""

    def clear_rows(self, parameters: tuple[nn.Parameter, ...], count: int) -> None:
        """Zeros in ``rows``, the buffer that stays from step to step."""
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
        """:meth:`solve` with its guards and diagnostics, on the scale that was asked for."""
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
        if self.weighing is not None:  # computes with losses, where these are
            self.weighing._apply(fn, recurse)
        return self  # see the docstring: state stays where it was made


class JacobianBalancer(GramBalancer):
    """Methods that need the gradients themselves and not only their inner products.

    On the level ``representation`` :meth:`combine_maps` gets the features and their gradients; it runs for every
    micro-batch and process by itself. The level ``layer`` does not exist here.

    Attributes:
        splits: the step is divided into this many independent parts, micro-batches in turn, and ``combine`` gets rows
            (splits t p). ``--accumulate`` must then be a multiple of it.
    """

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
                raise InputError("--balancer.sum-to", self.sum_to, "native, because this method computes a "
                                 "direction, not weights", "leave it out")

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
        raise InputError("--balancer.level", "representation", "parameters, because this method keeps gradients "
                         "across steps, and features differ from step to step", "use --balancer.level parameters")

    def direction(self, rows: Float[Tensor, "r p"], losses: Float[Tensor, " t"],
                  tasks: tuple[str, ...]) -> tuple[Float[Tensor, " p"], list[float] | list[Tensor]]:
        """:meth:`combine` with its guards and diagnostics; the plain sum where something is not finite."""
        size, inner = len(tasks), gram(list(rows[:len(tasks)]))
        parts = rows.unflatten(0, (self.splits, size)) if self.splits > 1 else rows
        asked = self.ask(parts, losses, tasks)
        # The only copy to the host; it is waited for.
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

    def ask(self, rows: Float[Tensor, "*s t p"], losses: Float[Tensor, " t"], tasks: tuple[str, ...]) -> Tensor:
        """Numbers that :meth:`combine` needs on the host (it finds them in ``answer``, flat and in float64). They
        travel with the inner products, so that the host waits once. The rows may not be finite: no state moves."""
        return rows.new_zeros(0)

    def _finite(self, found: Float[Tensor, " p"], weights: Float[Tensor, " t"], rows: Float[Tensor, "r p"],
                tasks: tuple[str, ...]) -> tuple[Float[Tensor, " p"], list[float] | list[Tensor]]:
        """Equal weights instead where the combination is not finite. A device decides that by itself: the weights are
        then tensors that the host does not look at."""
        good = torch.isfinite(found).all()
        if found.device.type == "cpu":
            return (found, weights.tolist()) if bool(good) else (rows.sum(0), self._fall_back(tasks))
        self.fallbacks = self.fallbacks + (~good).long()
        there = devices.sent(weights, found.device, found.dtype)
        return torch.where(good, found, rows.sum(0)), [*torch.where(good, there, 1).unbind()]

    def direction_of_maps(self, maps: Sequence[Tensor], rows: Sequence[Tensor], losses: Float[Tensor, " t"],
                          tasks: tuple[str, ...]) -> tuple[list[Tensor], list[float]]:
        """:meth:`combine_maps` with the same guards."""
        local = torch.stack([gram([x.flatten() for x in of_tasks]) for of_tasks in rows]).sum(0)
        size, inner = len(tasks), distributed.total(local) / distributed.world() ** 2
        host = torch.cat([inner.flatten(), losses.to(inner)]).cpu().double()  # the only copy to the host
        inner, losses = host[:-size].reshape(size, size), host[-size:]
        if self._overflowed(inner, losses):
            return [of_tasks.sum(0) for of_tasks in rows], [1.0] * size
        self._watch(inner, tasks)
        if bool(torch.isfinite(inner).all() & torch.isfinite(losses).all()):
            found, weights = self.combine_maps(maps, rows, losses, tasks)
            return found, weights.tolist()
        return [of_tasks.sum(0) for of_tasks in rows], self._fall_back(tasks)


class Preferring:
    """The passes of a step with losses times preferences, where these enter there, and what the step gave without
    them.

    Attributes:
        passes: for the step; those that were given where nothing was preferred.
    """

    def __init__(self, balancer: GramBalancer, passes: Sequence[Pass], network: nn.Module, scale: float | Tensor,
                 active: Collection[str] | None):
        self.balancer, self.scale, self.active = balancer, scale, active
        self._factors: dict[str, float | Tensor] | None = None
        self._losses: dict[int, dict[str, Tensor]] = {}
        self.passes, weighing = passes, balancer.weighing
        if weighing is None and not balancer.config.preferences:
            return
        if weighing is not None:
            weighing.begin()
            if len(passes) > 1 and weighing.needs_losses:
                with undisturbed(network), torch.no_grad():
                    self._decide(reduce(add, (run()[0] for run in passes), {}))
        self.passes = [partial(self._run, number, run) for number, run in enumerate(passes)]

    def _run(self, number: int, run: Pass) -> tuple[dict[str, Tensor], Output | None]:
        losses, output = run()
        self._losses[number] = {task: loss.detach() for task, loss in losses.items()}
        factors = self._factors if self._factors is not None else self._decide(losses)
        if self.balancer.preferring == "problem":
            return losses, output
        return {task: loss * factors[task] for task, loss in losses.items()}, output

    def _decide(self, losses: dict[str, Tensor]) -> dict[str, float | Tensor]:
        """Once in a step, however often its passes run."""
        given, weighing = self.balancer.config.preferences, self.balancer.weighing
        factors: dict[str, float | Tensor] = {task: given.get(task, 1.0) for task in losses}
        if weighing is not None:
            found = weighing._weights(losses, self.scale, self.active)
            factors = {task: factor * found[task] for task, factor in factors.items()}
            weighing.steps += 1
        self._factors = factors
        if self.balancer.preferring == "problem":
            self.balancer.wishes = factors
        return factors

    def finish(self, losses: dict[str, Tensor],
               weights: dict[str, float | Tensor]) -> tuple[dict[str, Tensor], dict[str, float | Tensor]]:
        """The losses as they were, and by what each was weighed in all."""
        if self._factors is None:
            return losses, weights
        losses = reduce(add, (self._losses[number] for number in sorted(self._losses)), {})
        if self.balancer.preferring == "losses":
            weights = {task: weight * self._factors[task] for task, weight in weights.items()}
        if self.balancer.weighing is not None:
            self.balancer.diagnostics |= {f"preference/{task}": value if isinstance(value, float) else value.detach()
                                          for task, value in self._factors.items()}
        return losses, weights


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
        self.weights: dict[str, Any] = {}  # numbers, or where the device decides about them tensors
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
            except _ReachGrew:  # what was added up so far lacks parameters; reach only grows, so this comes to an end
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
        elif self.level == "representation" and (len(self.passes) == 1
                                                        or isinstance(self.balancer, JacobianBalancer)):
            self._through_the_cut()
        else:
            self._by_survey()

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
        if losses is not self._followed:
            self._followed = losses
            made = predictions(output) if output is not None else {}
            # A task without labels in this pass may have a constant loss: its prediction says what it would reach.
            ends = {task: [loss] if loss.requires_grad else made.get(task, []) for task, loss in losses.items()}
            found = self.balancer.follow(self.network, ends, output.shared if output is not None else ())
            if (self._reach is not None and found is not self._reach) or self.balancer.level != self.level:
                raise _ReachGrew
            self._reach = found
        return losses, output

    # -- parameters ----------------------------------------------------------------------------------------------

    def _by_rows(self) -> None:
        """Rows of all micro-batches, their inner products, and their weighed sum without another backward pass."""
        balancer = self.balancer
        for number, run in enumerate(self.passes):
            self._add_rows(run, number)
        rows, scale = balancer.rows, self.scale
        distributed.average_([rows.flat])
        if isinstance(balancer, JacobianBalancer):
            direction, weights = balancer.direction(rows.flat.div_(scale), self._mean_losses(), self.tasks)
            rows.flat[0].copy_(direction).mul_(scale)
        else:
            weights = balancer.weights_of(self._unscaled(gram(list(rows.flat))), self._mean_losses(), self.tasks)
            rows.combine(weights)
        rows.hand_over()
        self._set(weights)
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
        """Each task's gradient goes as far as the cut, and one combined gradient from there."""
        for run in self.passes:
            losses, output = self._forward(run)
            cut = self._cut(output)
            ends = {task: [*cut, *self.reach.heads[task]] for task in self.tasks}
            found = {task: self._gradients(losses[task], ends[task]) for task in self.tasks}
            self._refuse_bypassed(losses, [x for of_task in found.values() for x in of_task[:len(cut)]])
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
        if isinstance(self.balancer, JacobianBalancer):
            scale = self.scale
            rows = [torch.stack(of_tasks) / scale for of_tasks in maps]
            combined, weights = self.balancer.direction_of_maps([z.detach() for z in cut], rows, self._mean_losses(),
                                                                self.tasks)
            self._set(weights)
            return [(x * scale).to(z.dtype) for x, z in zip(combined, cut, strict=True)]
        found = self.balancer.weights_of(self._inner(maps), self._mean_losses(), self.tasks)
        self._set(found)
        for of_tasks in maps:
            first = of_tasks[0].mul_(found[0])
            for weight, x in zip(found[1:], of_tasks[1:], strict=True):
                first.add_(x, alpha=weight)
        return [of_tasks[0] for of_tasks in maps]

    def _cut(self, output: Output | None) -> list[Tensor]:
        """The tensors at the cut through which gradients reach the trunk."""
        return [z for z in output.shared if z.requires_grad] if output is not None else []

    def _inner(self, maps: list[list[Tensor]]) -> Tensor:
        """Inner products sample by sample, added up over samples, maps and processes."""
        local = torch.stack([gram([x.flatten() for x in of_tasks]) for of_tasks in maps]).sum(0)
        return self._unscaled(distributed.total(local), distributed.world())

    def _unscaled(self, inner: Float[Tensor, "t t"], processes: int = 1) -> Float[Tensor, "t t"]:
        """Inner products of gradients that were scaled and not yet averaged. A scale on the device stays there; its
        square may be beyond float32."""
        if isinstance(self.scale, Tensor):
            return inner / self.scale / self.scale / processes**2
        return inner / (processes * self.scale) ** 2

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
            inner = self._unscaled(gram(list(rows)))
        weights = self.balancer.weights_of(inner, self._mean_losses(), self.tasks)
        self.passes, self.losses = again, {}
        self._backward_weighted(weights)

    def _survey(self, losses: dict[str, Tensor], output: Output | None) -> Tensor:
        """What adds up over micro-batches: inner products at the cut, or the rows of the last shared layer. (Nothing
        where the losses are all that is asked for.)"""
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
            at_cut = self.balancer.needs_gram and self.level == "representation"
            weighed = self.reach.trunk if at_cut else self.reach.shared
            inside = {id(p) for p in weighed}
            rest = [p for p in self.reach.all if id(p) not in inside]
            if weighed:
                whole.backward(inputs=weighed, retain_graph=bool(rest))
            if rest:
                torch.stack(list(present.values())).sum().backward(inputs=rest)
        self._average()

    # -- parts ---------------------------------------------------------------------------------------------------

    def _refuse_bypassed(self, losses: dict[str, Tensor], gradients: Sequence[Tensor | None]) -> None:
        """In a network that is compiled as a whole, losses do not come from the tensors of the cut, but from the one
        node that made these too. The trunk would get gradients of zero."""
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


def weighing_of(config: GramBalancer.Config) -> LossBalancer.Config:
    """The balancer of losses behind ``weighing``, with its options.

    Raises:
        InputError: there is none of that name, or it does not have such an option.
    """
    options = {name: int(value) if value == value // 1 else value for name, value in config.weighing_options.items()}
    found = chosen(Balancer.Config, config.weighing, options, "balancer.weighing")
    if not isinstance(found, LossBalancer.Config):
        raise InputError("balancer.weighing", config.weighing, "a balancer that weighs losses", "choose for instance "
                         "fixed, dwa, uncertainty or famo")
    return found


def _or_zero(gradient: Tensor | None, end: Tensor) -> Tensor:
    return torch.zeros_like(end) if gradient is None else gradient


class _ReachGrew(Exception):
    """A later micro-batch of a step uses parameters that the earlier ones did not."""
