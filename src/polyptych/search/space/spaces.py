"""Spaces of policies.

========== =================================================================================================
automtl    every operation and task: shared, own, or skip, independently (AutoMTL, NeurIPS 2022)
tree       groups of tasks only split with depth, so that what tasks share is computed once (the default)
partition  any groups at every unit
skip_only  every unit shared or skipped (AdaShare, NeurIPS 2020)
========== =================================================================================================
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from random import Random
from typing import ClassVar

from polyptych.errors import InputError, nearest
from polyptych.search.space.policy import OWN, SHARED, SKIP, Compilation, Norms, Policy, Row, SpaceName, groups, plain
from polyptych.search.space.units import Units


@dataclass(frozen=True, eq=False)
class Space(ABC):
    """Which policies there are for the units of one network.

    Attributes:
        units, tasks: the network's units, and the tasks.
        compilation, norms: how the units were found, and who owns norms; recorded in every policy.
        skip: whether tasks may skip units.
        pinned: the only choice of some units, by position.
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
        """Whether a task may skip the unit at this position: only residual branches, except in AutoMTL."""
        found = self.units.all[unit].skip
        return self.skip and found is not None and found.kind == "branch"

    def choices(self, unit: int) -> tuple[str, ...]:
        """The choices of a single task at a unit, with as many groups as there can be pairs of tasks."""
        if unit in self.pinned:
            return (self.pinned[unit],)
        groups = tuple(chr(ord("a") + i) for i in range(1, len(self.tasks) // 2))
        return (SHARED, *groups, OWN, SKIP) if self.may_skip(unit) else (SHARED, *groups, OWN)

    def allows(self, policy: Policy) -> str:
        """Why a policy is not in this space; empty if it is."""
        for unit, row in enumerate(policy.choices):
            for task, choice in zip(self.tasks, row, strict=True):
                where = f"units.{self.units.names[unit]}.{task}: '{choice}'"
                if choice != self.pinned.get(unit, choice):
                    return f"{where}, but the unit is pinned to '{self.pinned[unit]}'"
                if choice == SKIP and unit not in self.pinned and not self.may_skip(unit):
                    return f"{where}, but the unit cannot be left out"
        return ""

    def check_fit(self, policy: Policy) -> None:
        """Refuse a policy that this network cannot run.

        Raises:
            InputError: the policy is for another network or other tasks, or skips a unit that cannot be skipped.
        """
        if policy.graph != self.units.hash or policy.units != self.units.names:
            if policy.graph == self.units.hash:  # the file was edited
                strange = [name for name in policy.units if name not in self.units.names]
                missing = [name for name in self.units.names if name not in policy.units]
                got = (f"the unit '{strange[0]}', which this network does not have" if strange else
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
        """Refuse a policy that this network cannot run or that is not in this space.

        Raises:
            InputError: it does not fit the network, or is not in this space.
        """
        self.check_fit(policy)
        if reason := self.allows(policy):
            raise InputError("policy", reason, f"a policy of the space '{self.name}'",
                             "change that unit, or choose the space 'partition', where any tasks may share a unit")

    # -- making policies ----------------------------------------------------------------------------------------------

    def policy(self, rows: Sequence[Row]) -> Policy:
        """A policy with these choices, except at pinned units."""
        return Policy(self.tasks, self.units.names, tuple(self._pin(i, row) for i, row in enumerate(rows)),
                      self.units.hash, self.name, self.norms, self.compilation)

    def _pin(self, unit: int, row: Row) -> Row:
        return (self.pinned[unit],) * len(self.tasks) if unit in self.pinned else row

    def nearest(self, rows: Sequence[Row]) -> Policy:
        """A policy of the space with these choices, or with choices close to them."""
        return self.policy(rows)

    @abstractmethod
    def draw(self, random: Random) -> Policy:
        """A random policy."""

    @abstractmethod
    def mutate(self, policy: Policy, random: Random) -> Policy:
        """A policy that differs a little, or sometimes not at all."""

    def all_shared(self) -> Policy:
        """Every unit shared by all tasks."""
        return self.bottom_shared(len(self.units))

    def all_own(self) -> Policy:
        """Every task with its own copy of every unit, as in single-task networks (not in the space ``skip_only``)."""
        return self.bottom_shared(0)

    def bottom_shared(self, count: int) -> Policy:
        """The first ``count`` units shared by all tasks; each task has its own copy of every other unit."""
        return self.policy([(SHARED if i < count else OWN,) * len(self.tasks) for i in range(len(self.units))])

    def baselines(self) -> Iterator[tuple[str, Policy]]:
        """Named policies that a search must beat: all own, the first N shared for every N, all shared."""
        yield "all-own", self.all_own()
        for count in range(1, len(self.units)):
            yield f"bottom-{count}", self.bottom_shared(count)
        yield "all-shared", self.all_shared()

    def corners(self) -> Iterator[Policy]:
        """Policies that together use every copy of every unit that this space has."""
        for choice in dict.fromkeys(c for i in range(len(self.units)) for c in self.choices(i)):
            yield self.policy([((choice if choice in self.choices(i) else SHARED),) * len(self.tasks)
                               for i in range(len(self.units))])


SKIPS = 0.1  # probability that a random policy skips a unit that may be skipped


class AutoMTL(Space):
    """Every unit and task independently. Convolutions are skipped as in the paper: by identity or a 1x1 projection."""

    name: ClassVar[SpaceName] = "automtl"
    default_norms: ClassVar[Norms] = "task"

    def may_skip(self, unit: int) -> bool:
        return self.skip and self.units.all[unit].skip is not None

    def choices(self, unit: int) -> Row:
        return tuple(c for c in super().choices(unit) if c in (SHARED, OWN, SKIP) or unit in self.pinned)

    def allows(self, policy: Policy) -> str:
        for name, row in zip(policy.units, policy.choices, strict=True):
            if other := set(row) - {SHARED, OWN, SKIP}:
                return f"units.{name}: the group '{other.pop()}', where only shared, own, and skip exist"
        return super().allows(policy)

    def draw(self, random: Random) -> Policy:
        """Each choice with the same probability, as if sampled from untrained logits."""
        return self.policy([tuple(random.choice(self.choices(i)) for _ in self.tasks) for i in range(len(self.units))])

    def mutate(self, policy: Policy, random: Random) -> Policy:
        """Another choice for one task at one unit."""
        unit, task = random.randrange(len(self.units)), random.randrange(len(self.tasks))
        others = [c for c in self.choices(unit) if c != policy.choices[unit][task]]
        return policy.with_choices({(unit, task): random.choice(others)}) if others else policy


class SkipOnly(AutoMTL):
    """AdaShare (Sun, Panda, Feris, Saenko, NeurIPS 2020): tasks choose which residual blocks they use."""

    name: ClassVar[SpaceName] = "skip_only"
    default_norms: ClassVar[Norms] = "stream"

    def may_skip(self, unit: int) -> bool:
        return Space.may_skip(self, unit)

    def choices(self, unit: int) -> Row:
        return tuple(c for c in super().choices(unit) if c != OWN or unit in self.pinned)

    def allows(self, policy: Policy) -> str:
        for unit, row in enumerate(policy.choices):
            if OWN in row and unit not in self.pinned:
                return f"units.{policy.units[unit]}: own, where every unit is shared or skipped"
        return super().allows(policy)


class Partition(Space):
    """Any groups of tasks at every unit, whatever they did before."""

    name: ClassVar[SpaceName] = "partition"

    def draw(self, random: Random) -> Policy:
        return self.policy([self._row(i, random) for i in range(len(self.units))])

    def _row(self, unit: int, random: Random) -> Row:
        """Every task in turn skips the unit, joins a group, or opens one."""
        names: list[str] = []
        for _ in self.tasks:
            if self.may_skip(unit) and random.random() < SKIPS:
                names.append(SKIP)
            else:
                there = sorted(set(names) - {SKIP})
                names.append(random.choice([*there, f"g{len(there)}"]))
        return plain(tuple(names))

    def mutate(self, policy: Policy, random: Random) -> Policy:
        """Other groups at one unit."""
        unit = random.randrange(len(self.units))
        return self.policy([self._row(i, random) if i == unit else row for i, row in enumerate(policy.choices)])


class Tree(Space):
    """Tasks that part at a unit never meet again: the tasks of a group made the same choices at every unit before it.
    So each set of weights sees one stream of features, and what is shared is a trunk."""

    name: ClassVar[SpaceName] = "tree"

    def allows(self, policy: Policy) -> str:
        for unit, row in enumerate(policy.choices):
            for members in groups(row).values():
                for before in sorted(self.units.all[unit].before):
                    if len({_class(policy.choices[before], i) for i in members}) > 1:
                        return (f"units.{policy.units[unit]}: a group of tasks that parted at "
                                f"{policy.units[before]}")
        return super().allows(policy)

    def draw(self, random: Random) -> Policy:
        """The set of all tasks splits in two at a random unit or never, and so does every part from there on.

        The unit at which a part splits is uniform over the remaining units *and* the end ("never"), so deep and shallow
        trees are about equally likely. Independent choices at every unit would nearly always part all tasks within the
        first few units.
        """
        count = len(self.units)
        starts: list[list[tuple[int, ...]]] = [[] for _ in range(count + 1)]

        def split(block: tuple[int, ...], start: int) -> None:
            at = random.randint(start, count)
            if len(block) == 1 or at == count:  # at the end: this part stays together
                return
            order = random.sample(block, len(block))  # any tasks may go together, not only neighbors in the list
            parts = order[:random.randint(1, len(block) - 1)]
            for part in (parts, [i for i in block if i not in parts]):
                starts[at].append(tuple(part))
                split(tuple(part), at)  # from the same unit on, so that it may also fall into three at once

        split(tuple(range(len(self.tasks))), 0)
        names = ["all"] * len(self.tasks)
        rows = []
        for unit in range(count):
            for number, part in enumerate(starts[unit]):
                for i in part:
                    names[i] = f"{unit}_{number}"
            # A whole group skips the unit, because a task that skips alone would part from its group. The groups are
            # sorted: the order of a set differs between processes, and random numbers would go to other groups.
            out = {name for name in sorted(set(names)) if self.may_skip(unit) and random.random() < SKIPS}
            rows.append(tuple(SKIP if name in out else name for name in names))
        return self.nearest(rows)

    def mutate(self, policy: Policy, random: Random) -> Policy:
        """A group parts at a unit, two groups that part at a unit stay together there, or a group skips a unit (or no
        longer does).

        Each kind of mutation edits the rows without regard for the tree, and :meth:`nearest` repairs the rows further
        down. Names such as ``parted`` only have to differ from existing ones; ``canonical`` replaces them.
        """
        rows = [list(row) for row in policy.choices]
        unit = random.randrange(len(rows))
        blocks: dict[object, list[int]] = {}
        for i in range(len(self.tasks)):
            blocks.setdefault(_class(policy.choices[unit], i), []).append(i)
        block, *others = random.sample(list(blocks.values()), len(blocks))
        # Only kinds that can change something, each with the same probability. A pinned unit does not change.
        kinds = ["split"] * (len(block) > 1) + ["merge"] * bool(others) + ["skip"] * self.may_skip(unit)
        kind = random.choice(kinds) if kinds else ""
        if kind == "split":
            # At this unit only: from here on the two parts have different histories, so nearest() parts them at every
            # later unit.
            for i in random.sample(block, random.randint(1, len(block) - 1)):
                rows[unit][i] = f"{rows[unit][i]}_parted"
        elif kind == "merge":
            # At this unit only: later mutations may merge them further down, where they have different names. (``own``
            # is no group: two tasks with this choice do not share.)
            name = rows[unit][block[0]]
            for i in (*block, *others[0]):
                rows[unit][i] = "joined" if name == OWN else name
        elif kind == "skip":
            for i in block:
                rows[unit][i] = "back" if policy.choices[unit][i] == SKIP else SKIP
        return self.nearest([tuple(row) for row in rows])

    def nearest(self, rows: Sequence[Row]) -> Policy:
        """Divide each group into tasks that have not parted before.

        Units are visited in order, so a unit's history is repaired before the unit itself. Tasks stay in a common group
        if they made the same choices at *every* unit whose output reaches this one; units on parallel branches do not
        count, because they do not change the features here.
        """
        fixed = [self._pin(i, row) for i, row in enumerate(rows)]
        for _ in self.tasks:  # one round, unless units precede each other both ways
            for unit, row in enumerate(fixed):
                names = list(row)
                for members in groups(row).values():
                    histories: dict[object, str] = {}
                    for i in members:
                        history = tuple(_class(fixed[b], i) for b in sorted(self.units.all[unit].before))
                        names[i] = histories.setdefault(history, f"{row[i]}_{len(histories)}")
                fixed[unit] = row if unit in self.pinned else plain(tuple(names))
        return self.policy(fixed)


KINDS: dict[str, type[Space]] = {kind.name: kind for kind in (AutoMTL, Tree, Partition, SkipOnly)}


def make_space(name: str, units: Units, tasks: tuple[str, ...], compilation: Compilation, *, norms: Norms | None = None,
               skip: bool = True, pinned: Mapping[str, str] | None = None) -> Space:
    """Make a space by name.

    Args:
        pinned: the only choice of units whose names match a pattern. In a tree, all units before one that is pinned to
            a group are pinned to that group, too.

    Raises:
        InputError: the space is unknown; the tasks are none, repeated, or not usable as names; or a pattern matches no
            unit or has a choice that its units cannot have.
    """
    if name not in KINDS:
        raise InputError("space", f"'{name}'", nearest(name, KINDS), "choose one of these")
    if not tasks or len(set(tasks)) != len(tasks) or not all(task.isidentifier() for task in tasks):
        raise InputError("tasks", f"{', '.join(tasks) or 'none'}", "at least one name of letters and digits, each once",
                         "correct the list")
    fixed: dict[int, str] = {}
    for pattern, choice in (pinned or {}).items():
        found = [i for i, unit in enumerate(units.names) if fnmatchcase(unit, pattern)]
        if not found:
            raise InputError("pinned", f"'{pattern}', which matches no unit", nearest(pattern, units.names),
                             "correct the pattern")
        if choice == SKIP and any(units.all[i].skip is None for i in found):
            raise InputError("pinned", f"'{pattern}': skip", "units that can be left out", "choose shared or own")
        if name == "tree" and choice not in (OWN, SKIP):
            found += [before for i in found for before in units.all[i].before]
        for i in found:
            if fixed.setdefault(i, choice) != choice:
                raise InputError("pinned", f"'{units.names[i]}' to '{fixed[i]}' and to '{choice}'", "one choice",
                                 "correct the patterns (a group in a tree is the same at all units before it)")
    kind = KINDS[name]
    return kind(units, tasks, compilation, norms or kind.default_norms, skip, fixed)


def _class(row: Row, task: int) -> object:
    """A label for the choice of a task at a unit: tasks with equal labels do the same."""
    return (OWN, task) if row[task] == OWN else row[task]
