"""Spaces of policies.

========== =================================================================================================
automtl    every operation and task: shared, own or skip, independently (AutoMTL, NeurIPS 2022)
tree       groups of tasks only split with depth, so that what tasks share is computed once (the default)
partition  any groups at every unit
skip_only  every unit shared, or left out (AdaShare, NeurIPS 2020)
========== =================================================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from random import Random
from typing import ClassVar

from polyptych.errors import InputError, nearest
from polyptych.search.policy import OWN, SHARED, SKIP, Compilation, Norms, Policy, Row, groups, plain
from polyptych.search.space import Space
from polyptych.search.units import Units

SKIPS = 0.1  # probability with which a random policy leaves out a unit that it may leave out


class AutoMTL(Space):
    """Every unit and task independently. Convolutions are left out as in the paper: identity, or a 1x1 projection."""

    name: ClassVar[SpaceName] = "automtl"
    default_norms: ClassVar[Norms] = "task"

    def may_skip(self, unit: int) -> bool:
        return self.skip and self.units.all[unit].skip is not None

    def choices(self, unit: int) -> Row:
        return tuple(c for c in super().choices(unit) if c in (SHARED, OWN, SKIP) or unit in self.pinned)

    def allows(self, policy: Policy) -> str:
        for name, row in zip(policy.units, policy.choices, strict=True):
            if other := set(row) - {SHARED, OWN, SKIP}:
                return f"units.{name}: the group '{other.pop()}', where there is only shared, own and skip"
        return super().allows(policy)

    def draw(self, random: Random) -> Policy:
        """Each choice with the same probability, as sampled from the logits before any training."""
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
                return f"units.{policy.units[unit]}: own, where every unit is shared or left out"
        return super().allows(policy)


class Partition(Space):
    """Any groups of tasks at every unit, whatever they did before."""

    name: ClassVar[SpaceName] = "partition"

    def draw(self, random: Random) -> Policy:
        return self.policy([self._row(i, random) for i in range(len(self.units))])

    def _row(self, unit: int, random: Random) -> Row:
        """Every task in turn leaves the unit out, joins a group, or opens one."""
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
    """Tasks that part at a unit never meet again: a group at a unit are tasks that did the same at every unit before
    it. So each set of weights sees one stream of features, and what is shared is a trunk."""

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
        """All tasks together split in two at a random unit or never, and so does every part after it."""
        count = len(self.units)
        starts: list[list[tuple[int, ...]]] = [[] for _ in range(count + 1)]

        def split(block: tuple[int, ...], start: int) -> None:
            at = random.randint(start, count)
            if len(block) == 1 or at == count:
                return
            order = random.sample(block, len(block))
            parts = order[:random.randint(1, len(block) - 1)]
            for part in (parts, [i for i in block if i not in parts]):
                starts[at].append(tuple(part))
                split(tuple(part), at)

        split(tuple(range(len(self.tasks))), 0)
        names = ["all"] * len(self.tasks)
        rows = []
        for unit in range(count):
            for number, part in enumerate(starts[unit]):
                for i in part:
                    names[i] = f"{unit}_{number}"
            out = {name for name in sorted(set(names)) if self.may_skip(unit) and random.random() < SKIPS}
            rows.append(tuple(SKIP if name in out else name for name in names))
        return self.nearest(rows)

    def mutate(self, policy: Policy, random: Random) -> Policy:
        """A group parts at a unit; two groups that part at a unit stay together there; or a group leaves a unit out
        (or no longer does)."""
        rows = [list(row) for row in policy.choices]
        unit = random.randrange(len(rows))
        blocks: dict[object, list[int]] = {}
        for i in range(len(self.tasks)):
            blocks.setdefault(_class(policy.choices[unit], i), []).append(i)
        block, *others = random.sample(list(blocks.values()), len(blocks))
        kinds = ["split"] * (len(block) > 1) + ["merge"] * bool(others) + ["skip"] * self.may_skip(unit)
        kind = random.choice(kinds) if kinds else ""
        if kind == "split":
            moved = random.sample(block, random.randint(1, len(block) - 1))
            for at in (unit, *(i for i in range(len(rows)) if unit in self.units.all[i].before)):
                for i in moved:
                    rows[at][i] = rows[at][i] if rows[at][i] in (SKIP, OWN) and at != unit else f"{rows[at][i]}_parted"
        elif kind == "merge":
            name = rows[unit][block[0]]
            for i in (*block, *others[0]):
                rows[unit][i] = "joined" if name == OWN else name
        elif kind == "skip":
            for i in block:
                rows[unit][i] = "back" if policy.choices[unit][i] == SKIP else SKIP
        return self.nearest([tuple(row) for row in rows])

    def nearest(self, rows: Sequence[Row]) -> Policy:
        """Groups of tasks that have parted before become groups of those that have not."""
        fixed = [self._pin(i, row) for i, row in enumerate(rows)]
        for _ in self.tasks:  # once, but where units come before each other both ways
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
    """
    Args:
        pinned: for patterns of unit names, their only choice. In a tree, units before one that is pinned to a group are
            pinned to it too.

    Raises:
        InputError: unknown space; no, repeated or unusable names of tasks; a pattern that no unit fits, or a choice
            that its units cannot have.
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
            raise InputError("pinned", f"'{pattern}', which fits no unit", nearest(pattern, units.names), "correct it")
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
    """What a task does at a unit: tasks with the same class do the same."""
    return (OWN, task) if row[task] == OWN else row[task]
