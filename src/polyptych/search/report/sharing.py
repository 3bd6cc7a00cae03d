"""Which tasks share which units: a policy as a picture, with one line per task, and as a tree of text.

In the picture, a box is one set of weights of a unit, and every task is a line through the boxes that it uses. Lines in
one box use the same weights; a hollow dot marks a unit that a task skips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from polyptych.reports import style
from polyptych.reports.style import COLORS
from polyptych.search.space.policy import OWN, SKIP, Policy, Row

Blocks = tuple[tuple[int, ...], ...]
"""Groups of tasks (by position) that use the same weights of a unit, or all skip it."""


def blocks(row: Row) -> Blocks:
    """The groups of tasks at a unit, in the order of their first tasks."""
    found: dict[object, list[int]] = {}
    for i, choice in enumerate(row):
        found.setdefault((OWN, i) if choice == OWN else choice, []).append(i)
    return tuple(map(tuple, found.values()))


def is_tree(policy: Policy) -> bool:
    """Whether tasks that part never meet again in the order of the units. Skipped units do not count."""
    partings: set[frozenset[int]] = set()
    for row in policy.choices:
        for group in blocks(row):
            if row[group[0]] != SKIP and any(frozenset((i, j)) in partings for i in group for j in group):
                return False
        partings |= {frozenset((i, j)) for i in range(len(row)) for j in range(i)
                     if not any(i in group and j in group for group in blocks(row)) and SKIP not in (row[i], row[j])}
    return True


def lanes(policy: Policy) -> list[int]:
    """Positions of the tasks from top to bottom, such that tasks that share longest are neighbors."""
    order = list(range(len(policy.tasks)))

    def key(task: int) -> list[int]:
        return [min(next(group for group in blocks(row) if task in group)) for row in policy.choices]

    return sorted(order, key=lambda task: (key(task), task))


@contextmanager
def drawn(policy: Policy, title: str = "") -> Iterator[Figure]:
    """The picture of a policy as a figure."""
    count, order = len(policy.units), lanes(policy)
    lane = {task: len(order) - 1 - place for place, task in enumerate(order)}
    width = min(16.0, max(5.0, 0.33 * count + 2.4))
    height = 1.3 + 0.42 * len(order) + 0.07 * max(map(len, policy.units))
    with style.figure((width, height), text=8, axes=False) as figure:
        axes = figure.subplots()
        for task, place in lane.items():
            color = COLORS[task % len(COLORS)]
            axes.plot(range(-1, count + 1), [place] * (count + 2), color=color, linewidth=2.2, zorder=2)
            axes.text(count + 0.25, place, policy.tasks[task], color=color, va="center", ha="left", fontweight="bold")
            out = [unit for unit in range(count) if policy.choices[unit][task] == SKIP]
            axes.plot(out, [place] * len(out), "o", color="white", markeredgecolor=color, markersize=5, zorder=4)
        for unit, row in enumerate(policy.choices):
            for group in blocks(row):
                if row[group[0]] != SKIP:
                    _box(axes, unit, sorted(lane[i] for i in group))
        axes.set_xlim(-1, count + 0.2)
        axes.set_ylim(-0.7, len(order) - 0.3)
        axes.set_xticks(range(count), [_short(name) for name in policy.units], rotation=90)
        axes.set_yticks([])
        if title:
            axes.set_title(title, loc="left")
        yield figure


def _box(axes: Axes, unit: int, places: Sequence[int]) -> None:
    """Draw one box around neighboring lanes, and a bar between parts of a group that are not neighbors."""
    shade, ground = "#3b4148", "white" if len(places) == 1 else "#dfe6ee"
    runs = [[at for _, at in run] for _, run in groupby(enumerate(places), lambda pair: pair[1] - pair[0])]
    for run in runs:
        axes.add_patch(FancyBboxPatch((unit - 0.24, run[0] - 0.24), 0.48, run[-1] - run[0] + 0.48,
                                      boxstyle="round,pad=0,rounding_size=0.16", facecolor=ground, edgecolor=shade,
                                      linewidth=1.0, zorder=3, alpha=0.82))
    if len(runs) > 1:
        axes.plot([unit, unit], [places[0], places[-1]], color=shade, linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"…{name[-27:]}"


def svg(policy: Policy) -> str:
    """The picture as SVG for a page."""
    with drawn(policy) as figure:
        return style.svg(figure, "sharing", page=True)


def write_png(policy: Policy, path: Path, title: str = "") -> None:
    with drawn(policy, title) as figure:
        style.write_png(figure, path)


def tree_lines(policy: Policy) -> Iterator[str]:
    """The policy as text: a tree if it is one, otherwise a line for every run of units with the same sharing."""
    if is_tree(policy):
        yield from _branch(policy, tuple(range(len(policy.tasks))), 0, "", "")
        return
    for row, run in groupby(range(len(policy.units)), lambda unit: policy.choices[unit]):
        yield f"{_span(policy, list(run))}: {_sharing(policy, row)}"


def _branch(policy: Policy, tasks: tuple[int, ...], start: int, first: str, rest: str) -> Iterator[str]:
    """The units that these tasks have in common, then the groups that they split into."""
    end = start
    while end < len(policy.units) and len(_parts(policy, tasks, end)) == 1:
        end += 1
    names = ", ".join(policy.tasks[i] for i in tasks)
    skipped = [policy.units[u] for u in range(start, end) if policy.choices[u][tasks[0]] == SKIP]
    without = f", without {', '.join(skipped)}" if skipped else ""
    units = f"{_span(policy, list(range(start, end)))}{without}" if end > start else "(nothing in common)"
    yield f"{first}{units}  [{names}]"
    if end == len(policy.units):
        return
    parts = _parts(policy, tasks, end)
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        yield from _branch(policy, part, end, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))


def _parts(policy: Policy, tasks: tuple[int, ...], unit: int) -> list[tuple[int, ...]]:
    found = [tuple(i for i in group if i in tasks) for group in blocks(policy.choices[unit])]
    return [part for part in found if part]


def _span(policy: Policy, units: list[int]) -> str:
    names = policy.units
    if len(units) <= 2:
        return ", ".join(names[i] for i in units)
    return f"{names[units[0]]} … {names[units[-1]]} ({len(units)} units)"


def _sharing(policy: Policy, row: Row) -> str:
    parts = []
    for group in blocks(row):
        names = " = ".join(policy.tasks[i] for i in group)
        parts.append(f"without: {names.replace(' = ', ', ')}" if row[group[0]] == SKIP else names)
    return " | ".join(parts)
