"""The contract of a balancer: the only place that computes gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyptych import devices, distributed
from polyptych.balancers._engine import Reach, predictions, reach
from polyptych.component import Catalog, Component
from polyptych.errors import InputError, nearest
from polyptych.types import Likelihood, Output

CATALOG: Catalog[Balancer] = Catalog("balancer", "polyptych.balancers")

Pass = Callable[[], tuple[dict[str, Tensor], Output | None]]
"""One forward pass: the losses of a micro-batch and the network's output. Each call runs the network again."""

NO_SUM = 1e-12  # weights whose sum is at most this cannot be scaled to another sum


class Balancer(nn.Module, Component, ABC):
    """Weights the tasks and computes their gradients.

    A subclass keeps its state in buffers and parameters, so that it is saved, resumed, and moved with everything else;
    this class keeps the numbers of steps and fallbacks, and the seed. Parameters (learned weights) form their own
    group in the optimizer, without weight decay.

    A task is *active* in a step if any process has a valid label for it. The loss of an inactive task is exactly zero;
    it enters no solver, and its state does not change.

    Attributes:
        tasks: all tasks of the run, in order.
        reach: which task uses which parameters, once measured.
        fallbacks: steps so far with equal weights because the method's weights, or its inputs, were not finite.
        remark: one line on what the method cannot do with this network; empty if there is nothing to say.
        diagnostics: values of the last step worth watching, by name (``gradient_norm/depth``, ``fallbacks``).
        one_backward: whether gradients come from one ordinary backward pass, which DistributedDataParallel may average;
            if not, the balancer averages them itself and takes the bare network.
        wants_after_step: whether :meth:`after_step` needs to be called (it costs a forward pass).
        learning_rate_factor: multiplies the optimizer's learning rate for this balancer's own parameters.
    """

    tasks: tuple[str, ...]
    steps: int
    seed: int
    remark: str
    one_backward: bool = True
    wants_after_step: bool = False
    learning_rate_factor: float = 1.0
    lazy_buffers: ClassVar[tuple[str, ...]] = ()  # registered once their shape is known, or when a state is loaded

    @dataclass(frozen=True, kw_only=True)
    class Config(Component.Config):
        catalog = CATALOG

        def build(self, *, standard_weights: dict[str, float],
                  likelihoods: Mapping[str, Likelihood] | None = None) -> Balancer:
            """``standard_weights`` maps every task of the run to its usual weight in the field; ``likelihoods`` maps it
            to the distribution whose negative log-likelihood is its loss, for balancers that need it."""
            return self.owner(self, standard_weights=standard_weights)

    def __init__(self, config: Config | None = None, *, standard_weights: dict[str, float] | None = None):
        super().__init__()
        self.tasks = tuple(standard_weights or ())
        self.diagnostics: dict[str, float | Tensor] = {}
        self.steps, self.seed = 0, torch.initial_seed() % 2**31
        self.fallbacks: int | Tensor = 0
        self.reach: Reach | None = None
        self.remark = ""

    @abstractmethod
    def backward(self, losses: dict[str, Float[Tensor, ""]], network: nn.Module, output: Output | None = None,
                 scale: float | Tensor = 1.0) -> dict[str, float | Tensor]:
        """Add the gradients of the weighted losses to ``.grad`` of the network's parameters.

        Args:
            losses: one scalar per task. Each process passes its own; the loss is their mean.
            network: the network that computed them.
            output: its output; ``output.shared`` is the cut between shared and private parts.
            scale: multiplies every gradient (loss scaling of float16 training).

        Returns:
            The weight of each task.
        """

    def accumulate(self, passes: Sequence[Pass], network: nn.Module, scale: float | Tensor = 1.0,
                   active: Collection[str] | None = None) -> tuple[dict[str, Tensor], dict[str, float | Tensor]]:
        """:meth:`backward` for a step of several micro-batches, whose losses add up.

        Args:
            passes: one per micro-batch. A balancer may run one twice; the first run has no lasting effect on random
                numbers and batch statistics.
            active: the active tasks; None means all.

        Returns:
            The summed losses, detached, and the weight of each task.
        """
        total: dict[str, Tensor] = {}
        weights: dict[str, float | Tensor] = {}
        for run in passes:
            losses, output = run()
            weights = self.backward(losses, network, output, scale)
            total = add(total, losses)
        return total, weights

    def prepare(self, network: nn.Module, output: Output) -> None:
        """Learn before the first step, from an output with its graph, which parameters are shared. Needed if later
        graphs do not show it (a compiled network), and before a state is loaded into a fresh balancer.

        Raises:
            InputError: the balancer needs something that this network does not have.
        """
        self.reach = reach(network, predictions(output), output.shared)

    def after_step(self, again: Callable[[], dict[str, Tensor]]) -> None:
        """Called after the optimizer's step, if ``wants_after_step``. ``again()`` returns the losses of the same batch
        under the new parameters, over all processes, without gradients or an effect on batch statistics."""

    def on_epoch_end(self, losses: dict[str, float]) -> None:
        """Called after every pass through the data with the mean training losses over valid pixels and processes; a
        task without any label in the epoch is absent."""

    def on_validation(self, metrics: dict[str, dict[str, float]]) -> None:
        """Called after every validation with the metrics of each task, by name."""

    def random(self) -> torch.Generator:
        """A generator (on the CPU) that depends only on the seed and the step, so that its numbers are the same in
        every process and after a resume. Each call starts anew."""
        return torch.Generator().manual_seed(self.seed * 2_147_483_629 + self.steps)

    def begin(self) -> None:
        """Begin a step: at the first one, processes agree on the seed."""
        if self.steps == 0 and distributed.world() > 1:
            self.seed = int(distributed.from_main(torch.tensor(self.seed)))

    def checked(self, run: Pass, active: Collection[str] | None) -> tuple[dict[str, Tensor], Output | None]:
        """Run a forward pass and check that its losses are scalars, one for each task that takes part.

        Raises:
            InputError: they are not, or a task is unknown or missing.
        """
        losses, output = run()
        return scalars(losses, self.tasks, active), output

    def check_active(self, active: Collection[str] | None) -> Collection[str] | None:
        """Refuse an active task that this balancer does not have."""
        for task in active or ():
            if task not in self.tasks:
                raise InputError("active", f"'{task}'", nearest(task, self.tasks), "name tasks of the balancer")
        return active

    def to(self, *args: Any, **kwargs: Any) -> Balancer:
        """As for any module, except that the state becomes float32 on a device without float64."""
        device = torch._C._nn._parse_to(*args, **kwargs)[0]
        if device is not None and devices.widest(torch.device(device)) != torch.float64:
            self.float()
        return super().to(*args, **kwargs)

    def places(self, tasks: Sequence[str], like: Tensor) -> Tensor:
        """:meth:`positions` as an index tensor (t) on the device of a state; indexing with a list would make the host
        wait."""
        return devices.sent(self.positions(tasks), like.device)

    def positions(self, tasks: Sequence[str]) -> list[int]:
        """The positions of tasks among all tasks of the run, that is, their rows in a state."""
        return [self.tasks.index(task) for task in tasks]

    def get_extra_state(self) -> Tensor:
        return torch.tensor([self.steps, self.seed, int(self.fallbacks)])

    def set_extra_state(self, state: Any) -> None:
        self.steps, self.seed, self.fallbacks = state.tolist()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for name in self.lazy_buffers:
            if prefix + name in state_dict and getattr(self, name, None) is None:
                self.register_buffer(name, torch.empty_like(state_dict[prefix + name]))
        super()._load_from_state_dict(state_dict, prefix, *args)


def add(total: dict[str, Tensor], losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Add the losses of one more micro-batch, detached, to those before."""
    return {task: total[task] + loss.detach() if task in total else loss.detach() for task, loss in losses.items()}


def scalars(losses: Mapping[str, Tensor], tasks: Sequence[str], active: Collection[str] | None) -> dict[str, Tensor]:
    """The losses of a pass as tensors of shape (), in their order.

    A loss of shape (1,) or (1, 1), as some are, counts as a scalar; without the reshape, weights of shape (1,) would
    broadcast against each other. A task that is not in ``active`` may be absent.

    Raises:
        InputError: a loss is not a scalar, belongs to an unknown task, or is missing.
    """
    for task in losses:
        if task not in tasks:
            raise InputError("losses", f"a loss for '{task}'", nearest(task, tasks),
                             "name the task in standard_weights, or leave its loss out")
    for task in tasks if active is None else active:
        if task not in losses:
            raise InputError("losses", f"no loss for '{task}'", f"one loss for each of {', '.join(tasks)}",
                             "add the loss, or name the tasks that have labels in `active`")
    found = {}
    for task, loss in losses.items():
        if not isinstance(loss, Tensor):
            raise InputError(f"the loss of '{task}'", type(loss).__name__, "a tensor",
                             "pass the loss as it was computed, without .item()")
        if loss.numel() != 1 or not loss.is_floating_point():
            raise InputError(f"the loss of '{task}'", f"{str(loss.dtype).removeprefix('torch.')} of shape "
                             f"{tuple(loss.shape)}", "one floating-point number", "average or add up its elements")
        found[task] = loss if loss.ndim == 0 else loss.reshape(())
    return found
