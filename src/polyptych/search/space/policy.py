"""A policy as plain data: which weights every task uses at every unit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from polyptych.errors import InputError, nearest
from polyptych.record import read_json, write_json
from polyptych.search.space.units import GRANULARITIES, Granularity

SHARED, OWN, SKIP = "shared", "own", "skip"
FORMAT = 1
Norms = Literal["stream", "task"]
SpaceName = Literal["automtl", "tree", "partition", "skip_only"]
SPACES: tuple[SpaceName, ...] = get_args(SpaceName)
Row = tuple[str, ...]  # the choice of every task at a unit


@dataclass(frozen=True)
class Compilation:
    """How a backbone was divided into units; needed to find the same units again.

    Attributes:
        granularity: granularity of the units.
        any_size: whether modules whose structure depends on the image size stay whole.
        whole: patterns for the paths of modules that stay whole.
        size: height and width of the example image; None for the smallest that fits.
    """

    granularity: Granularity = "region"
    any_size: bool = True
    whole: tuple[str, ...] = ()
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Policy:
    """Which tasks share which units.

    A choice is ``own`` (a copy of the unit that no other task uses), ``skip`` (the task leaves the unit out), or the
    name of a group: tasks that name the same group at a unit use the same weights there. The group ``shared`` has the
    backbone's own weights; every other group, and every ``own``, starts as a copy of them. Norms and scales that follow
    a skipped unit are those of ``shared``.

    Attributes:
        tasks: names of the tasks, in the order of the choices.
        units: names of the units, in the order in which they run.
        choices: for every unit, a choice for every task.
        graph: hash of the units, :attr:`polyptych.search.space.units.Units.hash`.
        space: the space that the policy was drawn from.
        norms: ``stream``: a norm belongs to its unit and keeps separate running statistics for every distinct input.
            ``task``: every task has its own norms everywhere (AutoMTL), so no activation after the first is shared.
        compilation: how the units were found.
    """

    tasks: tuple[str, ...]
    units: tuple[str, ...]
    choices: tuple[tuple[str, ...], ...]
    graph: str
    space: str = "partition"
    norms: Norms = "stream"
    compilation: Compilation = Compilation()

    def __post_init__(self) -> None:
        assert len(self.choices) == len(self.units) and all(len(row) == len(self.tasks) for row in self.choices)

    def choice(self, unit: int, task: str) -> str:
        """The choice of a task at the unit in this position."""
        return self.choices[unit][self.tasks.index(task)]

    def with_choices(self, changes: Mapping[tuple[int, int], str]) -> Policy:
        """The same policy with other choices at some (unit, task) positions."""
        rows = [list(row) for row in self.choices]
        for (unit, task), choice in changes.items():
            rows[unit][task] = choice
        return replace(self, choices=tuple(map(tuple, rows)))

    def for_tasks(self, tasks: tuple[str, ...]) -> Policy:
        """The same policy with its tasks in another order.

        Raises:
            InputError: the policy has other tasks.
        """
        if sorted(tasks) != sorted(self.tasks):
            raise InputError("policy", f"choices for {', '.join(self.tasks)}", f"choices for {', '.join(tasks)}",
                             "train with the tasks that it was made for")
        columns = [self.tasks.index(task) for task in tasks]
        return replace(self, tasks=tasks, choices=tuple(tuple(row[i] for i in columns) for row in self.choices))

    def canonical(self) -> Policy:
        """The same sharing with standard names: a group of one task is ``own``, and the groups of a unit are
        ``shared``, ``b``, ``c``, ... in the order of their first tasks. Policies that differ only in names (and in
        which copies start from trained weights) become equal."""
        return replace(self, choices=tuple(map(plain, self.choices)))

    # -- JSON ---------------------------------------------------------------------------------------------------------

    def encode(self) -> dict[str, Any]:
        """The policy as JSON-ready data."""
        how = self.compilation
        return {"format": FORMAT, "graph": self.graph, "space": self.space, "norms": self.norms,
                "granularity": how.granularity, "any_size": how.any_size, "whole": list(how.whole),
                "size": None if how.size is None else list(how.size), "tasks": list(self.tasks),
                "units": {unit: dict(zip(self.tasks, row, strict=True))
                          for unit, row in zip(self.units, self.choices, strict=True)}}

    @classmethod
    def decode(cls, data: Any, where: str = "policy") -> Policy:
        """The policy of JSON data.

        Raises:
            InputError: the data is no policy; the message names the faulty place.
        """
        def need(condition: bool, place: str, got: Any, needs: str) -> None:
            if not condition:
                raise InputError(f"{where}: {place}", repr(got)[:80], needs, "edit the file, or search again with "
                                 "`polyptych search`")

        need(isinstance(data, dict), "file", data, "an object")
        need(data.get("format") == FORMAT, "format", data.get("format"), f"{FORMAT}, the format of this version")
        fields = {"format", "graph", "space", "norms", "granularity", "any_size", "whole", "size", "tasks", "units"}
        for name in data:
            need(name in fields, name, data[name], f"a known field: {nearest(name, fields)}")
        tasks, units, size = data.get("tasks"), data.get("units"), data.get("size")
        whole = data.get("whole", [])
        need(isinstance(tasks, list) and bool(tasks) and all(isinstance(t, str) for t in tasks), "tasks", tasks,
             "a list of names")
        need(len(set(tasks)) == len(tasks), "tasks", tasks, "each name once")
        need(isinstance(units, dict), "units", units, "an object with a choice for every task at every unit")
        for unit, row in units.items():
            need(isinstance(row, dict) and sorted(row) == sorted(tasks), f"units.{unit}", row,
                 f"a choice for each of {', '.join(tasks)}")
            for task, choice in row.items():
                need(isinstance(choice, str) and choice.replace("_", "").isalnum(), f"units.{unit}.{task}", choice,
                     f"'{OWN}', '{SKIP}', '{SHARED}' or a name of letters and digits for another group")
        need(data.get("granularity") in GRANULARITIES, "granularity", data.get("granularity"), ", ".join(GRANULARITIES))
        need(data.get("norms", "stream") in ("stream", "task"), "norms", data.get("norms"), "stream or task")
        need(isinstance(data.get("any_size", True), bool), "any_size", data.get("any_size"), "true or false")
        need(isinstance(whole, list) and all(isinstance(p, str) for p in whole), "whole", whole, "a list of patterns")
        plain = isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
        need(size is None or plain, "size", size, "null or [height, width]")
        for name in ("graph", "space"):
            need(isinstance(data.get(name), str), name, data.get(name), "a text")
        need(data["space"] in SPACES, "space", data["space"], f"one of {', '.join(SPACES)}")
        how = Compilation(data["granularity"], data.get("any_size", True), tuple(whole),
                          None if size is None else (size[0], size[1]))
        return cls(tuple(tasks), tuple(units), tuple(tuple(row[task] for task in tasks) for row in units.values()),
                   data["graph"], data["space"], data.get("norms", "stream"), how)

    def write(self, path: Path) -> None:
        """Write the policy as a JSON file."""
        write_json(path, self.encode())

    @classmethod
    def read(cls, path: Path) -> Policy:
        """Read a policy from a JSON file.

        Raises:
            InputError: there is no such file, or it is no policy.
        """
        return cls.decode(read_json(path), str(path))


def groups(row: Row) -> dict[str, tuple[int, ...]]:
    """Positions of the tasks in each group at a unit, without tasks that have ``own`` or ``skip``."""
    found: dict[str, list[int]] = {}
    for i, choice in enumerate(row):
        if choice not in (OWN, SKIP):
            found.setdefault(choice, []).append(i)
    return {name: tuple(members) for name, members in found.items()}


def plain(row: Row) -> Row:
    """The choices with standard names of groups, see :meth:`Policy.canonical`."""
    several = [members for members in groups(row).values() if len(members) > 1]
    names = {i: SHARED if n == 0 else chr(ord("a") + n) for n, members in enumerate(several) for i in members}
    return tuple(choice if choice == SKIP else names.get(i, OWN) for i, choice in enumerate(row))
