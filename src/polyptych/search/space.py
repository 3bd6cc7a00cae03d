"""What all spaces have in common: constraints on one kind of data, random draws, small changes, named baselines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from polyptych.errors import InputError
from polyptych.search.policy import OWN, SHARED, SKIP, Compilation, Norms, Policy, Row, SpaceName
from polyptych.search.units import Units


@dataclass(frozen=True, eq=False)
class Space(ABC):
    """Which policies there are for the units of one network.

    Attributes:
        units, tasks: the network's units, and the tasks.
        compilation: how the units were found; goes into every policy.
        norms: goes into every policy.
        skip: whether units may be left out.
        pinned: for the position of a unit, its only choice.
    """

    name: ClassVar[SpaceName]
    default_norms: ClassVar[Norms] = "stream"
    units: Units
    tasks: tuple[str, ...]
    compilation: Compilation
    norms: Norms
    skip: bool
    pinned: Mapping[int, str]

    # -- what a policy may say ----------------------------------------------------------------------------------------

    def may_skip(self, unit: int) -> bool:
        """Whether a task may leave out the unit at this position: residual branches only, but for AutoMTL."""
        found = self.units.all[unit].skip
        return self.skip and found is not None and found.kind == "branch"

    def choices(self, unit: int) -> tuple[str, ...]:
        """The choices that a single task has at a unit. There are as many groups as could have two tasks each."""
        if unit in self.pinned:
            return (self.pinned[unit],)
        groups = tuple(chr(ord("a") + i) for i in range(1, len(self.tasks) // 2))
        return (SHARED, *groups, OWN, SKIP) if self.may_skip(unit) else (SHARED, *groups, OWN)

    def allows(self, policy: Policy) -> str:
        """Why a policy is not of this space; empty if it is."""
        for unit, row in enumerate(policy.choices):
            for task, choice in zip(self.tasks, row, strict=True):
                where = f"units.{self.units.names[unit]}.{task}: '{choice}'"
                if choice != self.pinned.get(unit, choice):
                    return f"{where}, but the unit is pinned to '{self.pinned[unit]}'"
                if choice == SKIP and unit not in self.pinned and not self.may_skip(unit):
                    return f"{where}, but the unit cannot be left out"
        return ""

    def check_fit(self, policy: Policy) -> None:
        """
        Raises:
            InputError: a policy of another network, of other tasks, or that skips what has no skip.
        """
        if policy.graph != self.units.hash or policy.units != self.units.names:
            if policy.graph == self.units.hash:  # the file was edited
                strange = [name for name in policy.units if name not in self.units.names]
                missing = [name for name in self.units.names if name not in policy.units]
                got = (f"the unit '{strange[0]}', which this network has not" if strange else
                       f"no choices for the unit '{missing[0]}'" if missing else "the units in another order")
                raise InputError("policy", got, f"the {len(self.units)} units of this network, in its order",
                                 "write it again with `polyptych search`")
            raise InputError("policy", f"units of another network (graph {policy.graph})",
                             f"the {len(self.units)} units of this one (graph {self.units.hash})",
                             "use the backbone and the options that it was made with")
        if policy.tasks != self.tasks:
            raise InputError("policy", f"the tasks {', '.join(policy.tasks)}", f"{', '.join(self.tasks)}",
                             "use the tasks that it was made for, in their order")
        for unit, row in zip(self.units, policy.choices, strict=True):
            if SKIP in row and unit.skip is None:
                raise InputError(f"policy: units.{unit.name}", "skip", "a unit that can be left out",
                                 "choose shared or own")

    def validate(self, policy: Policy) -> None:
        """
        Raises:
            InputError: a policy that does not fit the network, or is not of this space.
        """
        self.check_fit(policy)
        if reason := self.allows(policy):
            raise InputError("policy", reason, f"a policy of the space '{self.name}'",
                             "correct it, or choose the space 'partition'")

    # -- making policies ----------------------------------------------------------------------------------------------

    def policy(self, rows: Sequence[Row]) -> Policy:
        """A policy with these choices, but for pinned units."""
        return Policy(self.tasks, self.units.names, tuple(self._pin(i, row) for i, row in enumerate(rows)),
                      self.units.hash, self.name, self.norms, self.compilation)

    def _pin(self, unit: int, row: Row) -> Row:
        return (self.pinned[unit],) * len(self.tasks) if unit in self.pinned else row

    def nearest(self, rows: Sequence[Row]) -> Policy:
        """A policy of the space that is these choices, or close to them."""
        return self.policy(rows)

    @abstractmethod
    def draw(self, random: Random) -> Policy:
        """A random policy."""

    @abstractmethod
    def mutate(self, policy: Policy, random: Random) -> Policy:
        """A policy that differs a little; now and then it does not differ."""

    def all_shared(self) -> Policy:
        """Every unit shared by all."""
        return self.bottom_shared(len(self.units))

    def all_own(self) -> Policy:
        """Every task with its own of every unit, as single networks have it (not of the space ``skip_only``)."""
        return self.bottom_shared(0)

    def bottom_shared(self, count: int) -> Policy:
        """The first units shared by all, every other one of each task's own."""
        return self.policy([(SHARED if i < count else OWN,) * len(self.tasks) for i in range(len(self.units))])

    def baselines(self) -> Iterator[tuple[str, Policy]]:
        """Named policies that a search must beat: all own, the first N shared for every N, all shared."""
        yield "all-own", self.all_own()
        for count in range(1, len(self.units)):
            yield f"bottom-{count}", self.bottom_shared(count)
        yield "all-shared", self.all_shared()

    def corners(self) -> Iterator[Policy]:
        """Policies that together use every copy that choices of this space may use."""
        for choice in dict.fromkeys(c for i in range(len(self.units)) for c in self.choices(i)):
            yield self.policy([((choice if choice in self.choices(i) else SHARED),) * len(self.tasks)
                               for i in range(len(self.units))])
