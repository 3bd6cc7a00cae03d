"""The contract of a balancer: the only place where gradients are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from polyptych.component import Catalog, Component
from polyptych.types import Output

CATALOG: Catalog[Balancer] = Catalog("balancer", "polyptych.balancers")


class Balancer(nn.Module, Component, ABC):
    """How tasks are weighed. State (running losses, learned weights) goes into buffers and parameters, so that it is
    saved, resumed and moved with everything else."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Component.Config):
        catalog = CATALOG

        def build(self, *, standard_weights: dict[str, float]) -> Balancer:
            """``standard_weights`` maps every task of the run to the weight that is customary in the field."""
            return self.owner(self, standard_weights=standard_weights)

    @abstractmethod
    def backward(self, losses: dict[str, Float[Tensor, ""]], network: nn.Module, output: Output,
                 scale: float | Tensor = 1.0) -> dict[str, float | Tensor]:
        """Add the gradients of the weighed losses to ``.grad`` of the network's parameters.

        Args:
            losses: one scalar per task.
            network: the network that made them.
            output: its output; ``output.shared`` is the cut between shared and private parts.
            scale: multiplies every gradient (loss scaling of float16 training).

        Returns:
            The weight that each task had.
        """
