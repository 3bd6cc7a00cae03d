"""Spaces of policies: constraints on one kind of data, with random draws, small changes and named baselines.

========== =================================================================================================
automtl    every operation and task: shared, own or skip, independently (AutoMTL, NeurIPS 2022)
tree       groups of tasks only split with depth, so that what tasks share is computed once (the default)
partition  any groups at every unit
skip_only  every unit shared, or left out (AdaShare, NeurIPS 2020)
========== =================================================================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from random import Random
from typing import ClassVar, Literal

from polyptych.errors import InputError, nearest
from polyptych.search.policy import OWN, SHARED, SKIP, Compilation, Norms, Policy, groups
from polyptych.search.units import Unit, Units

SpaceName = Literal["automtl", "tree", "partition", "skip_only"]
Row = tuple[str, ...]


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

    def may_skip(self, unit: Unit) -> bool:
        """Whether a task may leave a unit out."""
        return self.skip and unit.skip is not None and unit.skip.kind == "branch"

    @abstractmethod
    def choices(self, unit: int) -> tuple[str, ...]:
        """The choices that a single task has at a unit. (Group names stand for any.)"""

    def allows(self, policy: Policy) -> str:
        """Why a policy is not of this space; empty if it is."""
        for i, row in enumerate(policy.choices):
            for task, choice in zip(self.tasks, row, strict=True):
                where = f"{self.units.names[i]} of {task}: '{choice}'"
                if i in self.pinned and choice != self.pinned[i]:
                    return f"{where}, but the unit is pinned to '{self.pinned[i]}'"
                if choice == SKIP and not self.may_skip(self.units.all[i]) and self.pinned.get(i) != SKIP:
                    return f"{where}, but it cannot be left out"
        return ""

    def check_fit(self, policy: Policy) -> None:
        """
        Raises:
            InputError: a policy of another network, of other tasks, or that skips what has no skip.
        """
        if policy.graph != self.units.hash or policy.units != self.units.names:
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

    def policy(self, rows: list[Row]) -> Policy:
        """A policy with these choices, but for pinned units."""
        pinned = [(self.pinned[i],) * len(self.tasks) if i in self.pinned else row for i, row in enumerate(rows)]
        return Policy(self.tasks, self.units.names, tuple(pinned), self.units.hash, self.name, self.norms,
                      self.compilation)

    def nearest(self, rows: list[Row]) -> Policy:
        """A policy of the space that is these choices, or close to them."""
        return self.policy(rows)

    @abstractmethod
    def draw(self, random: Random) -> Policy:
        """A random policy."""

    @abstractmethod
    def mutate(self, policy: Policy, random: Random) -> Policy:
        """A policy that differs a little."""

    def all_shared(self) -> Policy:
        return self.bottom_shared(len(self.units))

    def all_own(self) -> Policy:
        return self.bottom_shared(0)

    def bottom_shared(self, count: int) -> Policy:
        """The first units shared by all, every other one of each task's own."""
        everyone = len(self.tasks)
        return self.policy([(SHARED if i < count else OWN,) * everyone for i in range(len(self.units))])

    def baselines(self) -> Iterator[tuple[str, Policy]]:
        """Named policies that a search must beat: all own, the first N shared for every N, all shared."""
        yield "all-own", self.all_own()
        for count in range(1, len(self.units)):
            yield f"bottom-{count}", self.bottom_shared(count)
        yield "all-shared", self.all_shared()

    def corners(self) -> Iterator[Policy]:
        """Policies that together use every copy that a policy of ``shared``, ``own`` and ``skip`` may use."""
        yield self.all_shared()
        yield self.all_own()
        everyone = len(self.tasks)
        yield self.policy([(SKIP if unit.skip is not None and self._projects(unit) else SHARED,) * everyone
                           for unit in self.units])

    def _projects(self, unit: Unit) -> bool:
        return self.may_skip(unit) and unit.skip is not None and unit.skip.projection is not None


class AutoMTL(Space):
    """Every unit and task independently. Convolutions are left out as in the paper: identity, or a 1x1 projection."""

    name: ClassVar[SpaceName] = "automtl"
    default_norms: ClassVar[Norms] = "task"

    def may_skip(self, unit: Unit) -> bool:
        return self.skip and unit.skip is not None

    def choices(self, unit: int) -> tuple[str, ...]:
        if unit in self.pinned:
            return (self.pinned[unit],)
        return (SHARED, OWN, SKIP) if self.may_skip(self.units.all[unit]) else (SHARED, OWN)

    def allows(self, policy: Policy) -> str:
        for name, row in zip(policy.units, policy.choices, strict=True):
            if other := set(row) - {SHARED, OWN, SKIP}:
                return f"{name}: the group '{other.pop()}', but only shared, own and skip"
        return super().allows(policy)

    def draw(self, random: Random) -> Policy:
        return self.policy([tuple(random.choice(self.choices(i)) for _ in self.tasks) for i in range(len(self.units))])

    def mutate(self, policy: Policy, random: Random) -> Policy:
        unit, task = random.randrange(len(self.units)), random.randrange(len(self.tasks))
        others = [c for c in self.choices(unit) if c != policy.choices[unit][task]]
        return policy.with_choices({(unit, task): random.choice(others)}) if others else policy


class SkipOnly(AutoMTL):
    """AdaShare (Sun, Panda, Feris, Saenko, NeurIPS 2020): tasks choose which residual blocks they use."""

    name: ClassVar[SpaceName] = "skip_only"
    default_norms: ClassVar[Norms] = "stream"

    def may_skip(self, unit: Unit) -> bool:
        return Space.may_skip(self, unit)

    def choices(self, unit: int) -> tuple[str, ...]:
        return tuple(choice for choice in super().choices(unit) if choice != OWN or unit in self.pinned)

    def allows(self, policy: Policy) -> str:
        for i, row in enumerate(policy.choices):
            if OWN in row and i not in self.pinned:
                return f"{policy.units[i]}: own, but every unit is shared or left out"
        return super().allows(policy)

    def all_own(self) -> Policy:
        """Of a task's own everything, although it is not of the space: the reference of single networks."""
        return super().all_own()


class Partition(Space):
    """Any groups of tasks at every unit, whatever they did before."""

    name = "partition"

    def choices(self, unit: int) -> tuple[str, ...]:
        if unit in self.pinned:
            return (self.pinned[unit],)
        names = (SHARED, OWN, *(chr(ord("a") + i) for i in range(1, max(1, len(self.tasks) // 2))))
        return (*names, SKIP) if self.may_skip(self.units.all[unit]) else names

    def draw(self, random: Random) -> Policy:
        return self.policy([self._row(i, random) for i in range(len(self.units))])

    def _row(self, unit: int, random: Random) -> Row:
        names: list[str] = []
        for _ in self.tasks:  # every task joins a group that is there, or opens one
            if self.may_skip(self.units.all[unit]) and random.random() < 0.2:
                names.append(SKIP)
                continue
            there = sorted({n for n in names if n != SKIP})
            names.append(random.choice([*there, f"g{len(there)}"]))
        return plain(tuple(names))

    def mutate(self, policy: Policy, random: Random) -> Policy:
        unit = random.randrange(len(self.units))
        return self.policy([self._row(i, random) if i == unit else row for i, row in enumerate(policy.choices)])


class Tree(Space):
    """Tasks that part at a unit never meet again: a group at a unit are tasks that did the same at every unit before
    it. So each set of weights sees one stream of features, and what is shared is a trunk."""

    name = "tree"

    def choices(self, unit: int) -> tuple[str, ...]:
        return Partition.choices(self, unit)  # type: ignore[arg-type]

    def allows(self, policy: Policy) -> str:
        for i, row in enumerate(policy.choices):
            for members in groups(row).values():
                if parted := self._parted(policy.choices, i, members):
                    return f"{policy.units[i]}: a group of tasks that parted at {parted}"
        return super().allows(policy)

    def _parted(self, rows: tuple[Row, ...], unit: int, members: tuple[int, ...]) -> str:
        for before in sorted(self.units.all[unit].before):
            if not together(rows[before], members):
                return self.units.names[before]
        return ""

    def draw(self, random: Random) -> Policy:
        """Groups split at random units, at random. Every group of residual blocks' users may leave some out."""
        count = len(self.units)
        splits: dict[int, list[tuple[tuple[int, ...], ...]]] = {}

        def split(block: tuple[int, ...], start: int) -> None:
            at = random.randint(start, count)
            if len(block) == 1 or at == count:
                return
            chosen = [i for i in block if random.random() < 0.5]
            if not 0 < len(chosen) < len(block):
                chosen = [random.choice(block)]
            parts = (tuple(chosen), tuple(i for i in block if i not in chosen))
            splits.setdefault(at, []).append(parts)
            for part in parts:
                split(part, at)

        everyone = tuple(range(len(self.tasks)))
        split(everyone, 0)
        blocks = [everyone]
        rows = []
        for unit in range(count):
            for parts in splits.get(unit, ()):
                blocks = [b for b in blocks if b != tuple(sorted(parts[0] + parts[1]))] + list(parts)
            rows.append(self._row(unit, blocks, random))
        return self.nearest(rows)

    def _row(self, unit: int, blocks: list[tuple[int, ...]], random: Random) -> Row:
        row = [""] * len(self.tasks)
        skips = self.may_skip(self.units.all[unit])
        for n, block in enumerate(blocks):
            choice = SKIP if skips and random.random() < 0.1 else f"g{n}"
            for i in block:
                row[i] = choice
        return plain(tuple(row))

    def mutate(self, policy: Policy, random: Random) -> Policy:
        """A group splits at a unit and after it, two groups part later, or a group leaves a unit out (or no more)."""
        rows = [list(row) for row in policy.choices]
        unit = random.randrange(len(rows))
        kind = random.choice(("split", "merge", "skip"))
        blocks = list(blocks_of(policy.choices[unit]))
        block = random.choice(blocks)
        if kind == "split" and len(block) > 1:
            moved = [i for i in block if random.random() < 0.5] or [block[0]]
            for row in rows[unit:]:
                _rename(row, moved[:len(block) - 1])
        elif kind == "merge" and len(blocks) > 1:
            other = random.choice([b for b in blocks if b != block])
            until = random.randint(unit, len(rows) - 1)
            for row in rows[:until + 1]:
                for i in other:
                    row[i] = row[block[0]] if row[block[0]] != OWN else "merged"
                if row[other[0]] == "merged":
                    for i in block:
                        row[i] = "merged"
        elif kind == "skip" and self.may_skip(self.units.all[unit]):
            new = "back" if rows[unit][block[0]] == SKIP else SKIP
            for i in block:
                rows[unit][i] = new
        return self.nearest([tuple(row) for row in rows])

    def nearest(self, rows: list[Row]) -> Policy:
        """Groups of tasks that have parted before become groups of those that have not."""
        fixed: list[Row] = []
        for unit, row in enumerate(rows):
            if unit in self.pinned:
                fixed.append((self.pinned[unit],) * len(self.tasks))
                continue
            names = list(row)
            before = sorted(self.units.all[unit].before)
            for members in groups(row).values():
                histories: dict[tuple[object, ...], list[int]] = {}
                for i in members:
                    history = tuple(_class(fixed[b] if b < len(fixed) else rows[b], i) for b in before)
                    histories.setdefault(history, []).append(i)
                for n, part in enumerate(histories.values()):
                    for i in part:
                        names[i] = f"{row[i]}{n}"
            fixed.append(plain(tuple(names)))
        return self.policy(fixed)


KINDS: dict[str, type[Space]] = {kind.name: kind for kind in (AutoMTL, Tree, Partition, SkipOnly)}


def make_space(name: str, units: Units, tasks: tuple[str, ...], compilation: Compilation, *, norms: Norms | None = None,
               skip: bool = True, pinned: Mapping[str, str] | None = None) -> Space:
    """
    Args:
        pinned: for patterns of unit names, their only choice.

    Raises:
        InputError: unknown space; no or repeated tasks; a pattern that no unit fits, or a choice it cannot have.
    """
    if name not in KINDS:
        raise InputError("space", f"'{name}'", nearest(name, KINDS), "choose one of these")
    if not tasks or len(set(tasks)) != len(tasks):
        raise InputError("tasks", f"{', '.join(tasks) or 'none'}", "at least one, each once", "correct the list")
    fixed: dict[int, str] = {}
    for pattern, choice in (pinned or {}).items():
        found = [i for i, unit in enumerate(units.names) if fnmatchcase(unit, pattern)]
        if not found:
            raise InputError("pinned", f"'{pattern}', which fits no unit", nearest(pattern, units.names), "correct it")
        if choice == SKIP and any(units.all[i].skip is None for i in found):
            raise InputError("pinned", f"'{pattern}': skip", "units that can be left out", "choose shared or own")
        fixed |= dict.fromkeys(found, choice)
    kind = KINDS[name]
    return kind(units, tasks, compilation, norms or kind.default_norms, skip, fixed)


def blocks_of(row: Row) -> Iterator[tuple[int, ...]]:
    """Tasks that do the same at a unit."""
    found: dict[object, list[int]] = {}
    for i in range(len(row)):
        found.setdefault(_class(row, i), []).append(i)
    return map(tuple, found.values())


def together(row: Row, members: tuple[int, ...]) -> bool:
    """Whether these tasks do the same at a unit."""
    return len({_class(row, i) for i in members}) == 1


def plain(row: Row) -> Row:
    """Plainest names, as :meth:`Policy.canonical` has them."""
    several = [members for members in groups(row).values() if len(members) > 1]
    names = {i: SHARED if n == 0 else chr(ord("a") + n) for n, members in enumerate(several) for i in members}
    return tuple(SKIP if choice == SKIP else names.get(i, OWN) for i, choice in enumerate(row))


def _class(row: Row, task: int) -> object:
    return (OWN, task) if row[task] == OWN else row[task]


def _rename(row: list[str], moved: list[int]) -> None:
    for i in moved:
        if row[i] not in (SKIP, OWN):
            row[i] = f"{row[i]}x"
