"""Balancers that remember a vector as long as the shared parameters for every task."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.balancers._engine import gram
from polyptych.balancers._gradients import JacobianBalancer
from polyptych.errors import InputError


class RememberingBalancer(JacobianBalancer):
    """``memory`` (k p) holds one row for every task of the run. It is zero in the beginning, lives beside the
    parameters, and is saved with the balancer; rows of tasks without a label in a step are for the subclass not to
    touch. It costs as much memory as the gradients themselves.

    Raises:
        InputError: a state was loaded that belongs to another network.
    """

    lazy_buffers = ("memory",)
    memory: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config(JacobianBalancer.Config):
        pass

    def allocate(self, parameters: int, device: torch.device) -> None:
        assert self.reach is not None
        shape, like = (len(self.tasks), parameters), self.reach.shared[0]
        before: Tensor | None = getattr(self, "memory", None)
        if before is not None and before.shape != shape:
            raise InputError("the saved state of the balancer", f"memory of {tuple(before.shape)}", f"of {shape}, "
                             "tasks by shared parameters", "resume with the network that it was saved with")
        self.register_buffer("memory", torch.zeros(shape, device=device, dtype=like.dtype) if before is None
                             else before.to(like))

    def remembered_gram(self, tasks: tuple[str, ...]) -> Float[Tensor, "t t"]:
        """Inner products of the rows of some tasks, in float64 on the CPU."""
        return gram([self.memory[k] for k in self.positions(tasks)]).cpu()

    def weighed_memory(self, weights: Float[Tensor, " t"], tasks: tuple[str, ...]) -> Float[Tensor, " p"]:
        """The weighed sum of the rows of some tasks, on the device."""
        every = torch.zeros(len(self.tasks), dtype=weights.dtype)
        every[self.positions(tasks)] = weights
        return every.to(self.memory) @ self.memory
