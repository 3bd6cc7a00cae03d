"""Budgets: ``params=0.5x,flops=1.5x,latency=20ms,memory=64MiB``, each relative to one shared backbone or absolute."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from polyptych.errors import InputError, nearest


@dataclass(frozen=True)
class CostKind:
    """A kind of cost that a budget can limit.

    Attributes:
        field: its field of :class:`PolicyCost`.
        title: its name in reports.
        units: the value of each unit, in units of the field.
    """

    field: str
    title: str
    units: Mapping[str, float]


# A new kind is a row here, a field of PolicyCost, and its number in `supermodel.costs.CostTable.cost`.
KINDS = {
    "params": CostKind("parameters", "parameters", {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}),
    "flops": CostKind("multiply_adds", "multiply-adds", {"": 1, "M": 1e6, "G": 1e9, "T": 1e12}),
    "memory": CostKind("memory", "activation memory", {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "kB": 1e3,
                                                       "MB": 1e6, "GB": 1e9}),
    "latency": CostKind("latency", "latency", {"s": 1, "ms": 1e-3, "us": 1e-6}),
}
_NAMES = ", ".join(name if name == kind.title else f"{name} ({kind.title})" for name, kind in KINDS.items())
HELP = f"""Limits on the cost of the encoder, separated by commas, on any of {_NAMES}. A number with x counts in
units of one backbone that all tasks share (separate networks cost as many x as there are tasks; with --space automtl,
whose norms are per task, sharing every weight costs almost as many flops as that): params=2x,flops=1.5x. A number
without x is absolute: params=30M, flops=4G, memory=64MiB, latency=20ms."""


@dataclass(frozen=True)
class PolicyCost:
    """What an encoder costs for one image.

    Attributes:
        parameters: number of trained values.
        multiply_adds: as the profiler counts them.
        memory: peak bytes of activations in a forward pass without gradients.
        latency: seconds, the sum over all steps; 0 if it was not measured.
    """

    parameters: int
    multiply_adds: int
    memory: int
    latency: float = 0.0


@dataclass(frozen=True)
class Limit:
    """One limit: ``amount`` times one shared backbone where ``relative``, else in units of the cost."""

    name: str
    amount: float
    relative: bool

    def value(self, shared: PolicyCost) -> float:
        return self.amount * (getattr(shared, KINDS[self.name].field) if self.relative else 1.0)


@dataclass(frozen=True)
class Budget:
    """Limits that must all hold.

    Attributes:
        text: the budget as the user wrote it.
    """

    limits: tuple[Limit, ...] = ()
    text: str = ""

    @property
    def timed(self) -> bool:
        """Whether latency has to be measured."""
        return any(limit.name == "latency" for limit in self.limits)

    def allows(self, cost: PolicyCost, shared: PolicyCost) -> bool:
        """Whether a cost is within all limits; ``shared`` is the cost of one shared backbone."""
        return self.use(cost, shared) <= 1 + 1e-9

    def use(self, cost: PolicyCost, shared: PolicyCost) -> float:
        """The largest share of any limit that a cost takes: above 1 if it exceeds the budget, 0 without limits."""
        return max((getattr(cost, KINDS[limit.name].field) / max(limit.value(shared), 1e-30) for limit in self.limits),
                   default=0.0)

    def words(self, cost: PolicyCost, shared: PolicyCost) -> str:
        """A cost in one line: as a share of the budget or, without limits, in multiples of one shared backbone."""
        if self.limits:
            return f"{self.use(cost, shared):.2f} of the budget"
        return (f"{cost.parameters / shared.parameters:.2f}x the parameters and "
                f"{cost.multiply_adds / shared.multiply_adds:.2f}x the multiply-adds of one backbone")


def parse_budget(text: str) -> Budget:
    """Read a budget such as ``params=0.5x,flops=4G``.

    Raises:
        InputError: an unknown name or unit, or a limit that is given twice or is not positive.
    """
    limits: list[Limit] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, amount = (piece.strip() for piece in part.partition("="))
        if name not in KINDS:
            raise InputError("--budget", f"'{name}'", nearest(name, KINDS), "for instance --budget flops=1.5x")
        if any(limit.name == name for limit in limits):
            raise InputError("--budget", f"{name} twice", "every limit once", "remove one")
        units = KINDS[name].units
        found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]*)", amount)
        unit = found[2] if found else ""
        if found is None or not (unit == "x" or unit in units) or float(found[1]) <= 0:
            raise InputError(f"--budget {name}", f"'{amount}'", "a positive number with x (times one shared backbone)"
                             f" or one of the units {', '.join(filter(None, units))}", f"for instance {name}=1.5x")
        relative = unit == "x"
        limits.append(Limit(name, float(found[1]) * (1 if relative else units[unit]), relative))
    return Budget(tuple(limits), text)
