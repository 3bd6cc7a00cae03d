"""Balancers that keep, for every task, a vector as long as the shared parameters."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from polyptych import devices
from polyptych.balancers._engine import gram
from polyptych.balancers._gradients import JacobianBalancer
from polyptych.errors import InputError


class RememberingBalancer(JacobianBalancer):
    """``memory`` (k p) holds one row for every task of the run. It starts at zero, lives on the parameters' device, and
    is saved with the balancer. A subclass leaves the rows of tasks without a label in a step alone. The memory takes as
    much space as the gradients themselves.

    Raises:
        InputError: a loaded state belongs to another network.
    """

    lazy_buffers = ("memory",)
    memory: Tensor
    _columns: tuple[nn.Parameter, ...] = ()  # whose columns are in ``memory``, in this order

    def allocate(self, parameters: int, device: torch.device) -> None:
        assert self.reach is not None
        shape, like = (len(self.tasks), parameters), self.reach.shared[0]
        before: Tensor | None = getattr(self, "memory", None)
        if before is not None and self._columns and before.shape[1] == sum(p.numel() for p in self._columns):
            before = self._moved(before)
        self._columns = self.reach.shared
        if before is not None and before.shape != shape:
            raise InputError("the saved state of the balancer", f"memory of shape {tuple(before.shape)}",
                             f"shape {shape}, tasks by shared parameters",
                             "resume with the network that it was saved with")
        self.register_buffer("memory", torch.zeros(shape, device=device, dtype=like.dtype) if before is None
                             else before.to(like))

    def _moved(self, before: Float[Tensor, "k q"]) -> Float[Tensor, "k p"]:
        """The memory after parameters were frozen or added: each keeps its columns, and new ones start at zero."""
        assert self.reach is not None
        kept = dict(zip(map(id, self._columns), before.split([p.numel() for p in self._columns], 1), strict=True))
        return torch.cat([kept[id(p)] if id(p) in kept else before.new_zeros(len(before), p.numel())
                          for p in self.reach.shared], 1)

    def remembered_gram(self, tasks: tuple[str, ...]) -> Float[Tensor, "t t"]:
        """Inner products of some tasks' rows, in float64 on the CPU; the host waits for them."""
        return gram([self.memory[k] for k in self.positions(tasks)]).cpu().double()

    def weighed_memory(self, weights: Float[Tensor, " t"], tasks: tuple[str, ...]) -> Float[Tensor, " p"]:
        """The weighted sum of some tasks' rows, on the device."""
        every = torch.zeros(len(self.tasks), dtype=weights.dtype)
        every[self.positions(tasks)] = weights
        return devices.sent(every, self.memory.device, self.memory.dtype) @ self.memory
