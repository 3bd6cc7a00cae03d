"""Plots of a search: quality against cost, with the baselines, and quality after training against the score on the
supermodel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from polyptych.reports import style
from polyptych.reports.style import COLORS, TEXT

KINDS = {"searched": ("searched", COLORS[0], "*"), "finalist": ("other finalists", COLORS[0], "o"),
         "single": ("single networks", COLORS[4], "s"), "shared": ("all shared", COLORS[2], "s"),
         "bottom": ("first N units shared", COLORS[2], "D"), "tree": ("random tree", COLORS[1], "^"),
         "op": ("random per unit", COLORS[3], "v"), "conflict": ("conflict ranking", COLORS[5], "P")}
SIZE = (7.4, 3.9)  # inches


@dataclass(frozen=True)
class Point:
    """One network.

    Attributes:
        kind: a key of KINDS.
        cost: in units of one shared backbone.
        value: quality; higher is better.
        half: half the interval of the value; None without one.
        other: the score on the supermodel.
    """

    label: str
    kind: str
    cost: float
    value: float
    half: float | None
    other: float


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats at the same or a lower cost, cheapest first."""
    best, found = -math.inf, []
    for point in sorted(points, key=lambda point: (point.cost, -point.value)):
        if point.value > best:
            best = point.value
            found.append(point)
    return found


def tradeoff_svg(points: Sequence[Point], cost: str, value: str, limit: float | None = None, *, page: bool = True
                 ) -> str:
    """Quality against cost.

    Args:
        cost, value: labels of the axes.
        limit: the budget, drawn as a vertical line.
        page: whether to draw in the page's text color on a transparent background, or else on white.
    """
    with style.figure(SIZE) as figure:
        axes = figure.subplots()
        if limit is not None:
            axes.axvline(limit, color=TEXT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            axes.annotate("budget", (limit, 1), xycoords=("data", "axes fraction"), xytext=(4, -10),
                          textcoords="offset points", color=TEXT, fontsize=8)
        line = pareto_front(points)
        axes.step([p.cost for p in line], [p.value for p in line], where="post", color=TEXT, linewidth=1.2, alpha=0.6,
                  zorder=2)
        _points(axes, points, [point.cost for point in points], [point.value for point in points], halves=True)
        axes.set_xlabel(cost)
        axes.set_ylabel(value)
        _keys(figure, points)
        return style.svg(figure, "front", page=page)


def ranks_svg(points: Sequence[Point], value: str, *, page: bool = True) -> str:
    """Quality after training against the score on the supermodel."""
    with style.figure(SIZE) as figure:
        axes = figure.subplots()
        _points(axes, points, [point.other for point in points], [point.value for point in points], halves=False)
        axes.set_xlabel("mean skill on the supermodel, batch statistics re-estimated")
        axes.set_ylabel(value)
        _keys(figure, points)
        return style.svg(figure, "ranks", page=page)


def _points(axes: Axes, points: Sequence[Point], x: Sequence[float], y: Sequence[float], halves: bool) -> None:
    for point, a, b in zip(points, x, y, strict=True):
        _, color, marker = KINDS[point.kind]
        strong = point.kind == "searched"
        axes.errorbar(a, b, yerr=point.half if halves else None, color=color, marker=marker,
                      markersize=15 if strong else 7, markeredgewidth=0.8 if strong else 0,
                      markeredgecolor="white", elinewidth=0.9, capsize=2, alpha=1 if strong else 0.85,
                      zorder=5 if strong else 3)
    axes.margins(x=0.07, y=0.12)


def _keys(figure: Figure, points: Sequence[Point]) -> None:
    there = {point.kind for point in points}
    keys = [Line2D([], [], marker=marker, linestyle="", color=color, markersize=11 if kind == "searched" else 7,
                   markeredgewidth=0, label=label) for kind, (label, color, marker) in KINDS.items() if kind in there]
    figure.legend(handles=keys, loc="outside right upper")
