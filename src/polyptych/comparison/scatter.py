"""Gain against cost: every method as a point with its interval, drawn as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.lines import Line2D

from polyptych.reports import style
from polyptych.reports.style import COLORS, TEXT

MARKERS = "osD^vP*X<>"
SIZE = (7.4, 3.5)  # inches


@dataclass(frozen=True)
class Point:
    """One method.

    Attributes:
        cost: billions of multiply-adds per image.
        gain: delta_mtl in percent.
        half: half its confidence interval; None without one.
    """

    network: str
    balancer: str
    cost: float
    gain: float
    half: float | None


def svg(points: Sequence[Point]) -> str:
    """The plot as an element of a page: transparent, with text in the color of the page's text; empty without
    points."""
    return _draw(points, page=True) if points else ""


def sheet(points: Sequence[Point]) -> str:
    """The plot as an SVG file on white."""
    return _draw(points, page=False)


def _side_by_side(points: Sequence[Point]) -> list[float]:
    """Horizontal positions: points of equal cost are placed side by side, so that intervals do not hide each other."""
    gap = 0.018 * max(point.cost for point in points)
    places = []
    for index, point in enumerate(points):
        same = [other for other, peer in enumerate(points) if peer.cost == point.cost]
        places.append(point.cost + gap * (same.index(index) - (len(same) - 1) / 2))
    return places


def _draw(points: Sequence[Point], page: bool) -> str:
    networks = list(dict.fromkeys(point.network for point in points))
    balancers = list(dict.fromkeys(point.balancer for point in points))
    color = {name: COLORS[index % len(COLORS)] for index, name in enumerate(networks)}
    marker = {name: MARKERS[index % len(MARKERS)] for index, name in enumerate(balancers)}
    with style.figure(SIZE) as figure:
        axes = figure.subplots()
        axes.axhline(0, color=TEXT, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        for point, x in zip(points, _side_by_side(points), strict=True):
            axes.errorbar(x, point.gain, yerr=point.half, color=color[point.network],
                          marker=marker[point.balancer], markersize=8, markeredgewidth=0, elinewidth=1.3, capsize=3,
                          zorder=3)
        axes.margins(x=0.12, y=0.15)
        left, right = axes.get_xlim()
        axes.set_xlim(0 if left < 0.5 * right else left, right)
        axes.set_xlabel("multiply-adds per image, billion")
        axes.set_ylabel("delta_mtl, %")
        keys = [Line2D([], [], marker="o", linestyle="", color=color[name], markeredgewidth=0, label=name)
                for name in networks]
        if len(balancers) > 1:
            keys += [Line2D([], [], marker=marker[name], linestyle="", color=TEXT, markeredgewidth=0, label=name)
                     for name in balancers]
        figure.legend(handles=keys, loc="outside right upper")
        return style.svg(figure, "scatter", page=page)
