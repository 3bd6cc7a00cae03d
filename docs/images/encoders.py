"""Draws encoders.png: what each encoder shares between two tasks.

    python docs/images/encoders.py
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

SHARED, TASKS, INK = "#8a8f98", ("#d1495b", "#2e86ab"), "#333333"
STAGES = (1.0, 2.0, 3.0)
TOP, MIDDLE, BOTTOM = 1.0, 0.0, -1.0
END = 4.0


def box(ax: Axes, x: float, y: float, color: str, size: float = 0.42) -> None:
    ax.add_patch(plt.Rectangle((x - size / 2, y - size / 2), size, size, color=color, zorder=3, lw=0))


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK) -> None:
    ax.annotate("", end, start, zorder=2, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.1, "shrinkA": 0,
                                                      "shrinkB": 0, "mutation_scale": 9})


def chain(ax: Axes, y: float, color: str, stages: tuple[float, ...] = STAGES, entry: float | None = 0.0) -> None:
    """Stages in a row, one feeding the next; the first is fed from the image unless ``entry`` is None."""
    for before, after in pairwise(stages):
        arrow(ax, (before + 0.21, y), (after - 0.21, y))
    for x in stages:
        box(ax, x, y, color)
    if entry is not None:
        arrow(ax, (0.2, entry), (stages[0] - 0.21, y))


def outputs(ax: Axes, sources: tuple[float, float]) -> None:
    for source, y, color in zip(sources, (TOP, BOTTOM), TASKS, strict=True):
        arrow(ax, (STAGES[-1] + 0.21, source), (END - 0.13, y))
        ax.add_patch(plt.Circle((END, y), 0.13, color=color, zorder=3))


def single(ax: Axes) -> None:
    for y, color in zip((TOP, BOTTOM), TASKS, strict=True):
        chain(ax, y, color)
    outputs(ax, (TOP, BOTTOM))


def shared(ax: Axes) -> None:
    chain(ax, MIDDLE, SHARED)
    outputs(ax, (MIDDLE, MIDDLE))


def split(ax: Axes) -> None:
    chain(ax, MIDDLE, SHARED, STAGES[:2])
    for y, color in zip((TOP, BOTTOM), TASKS, strict=True):
        chain(ax, y, color, STAGES[2:], entry=None)
        arrow(ax, (STAGES[1] + 0.21, MIDDLE), (STAGES[2] - 0.21, y))
    outputs(ax, (TOP, BOTTOM))


def dense(ax: Axes) -> None:
    chain(ax, MIDDLE, SHARED, STAGES[:2])
    for y, color in zip((TOP, BOTTOM), TASKS, strict=True):
        chain(ax, y, color)
        for before, after in pairwise(STAGES):
            arrow(ax, (before + 0.21, MIDDLE), (after - 0.21, y * 0.9), SHARED)
    outputs(ax, (TOP, BOTTOM))


def units(ax: Axes, label: str) -> None:
    for y, color in zip((TOP, BOTTOM), TASKS, strict=True):
        arrow(ax, (0.2, MIDDLE), (STAGES[0] - 0.21, y))
        for i, x in enumerate(STAGES):
            box(ax, x, y, color)
            target = STAGES[i + 1] - 0.21 if i + 1 < len(STAGES) else END - 0.13
            for source in (TOP, BOTTOM):
                if source == y:
                    arrow(ax, (x + 0.21, y), (x + 0.42, y))
                else:
                    arrow(ax, (x + 0.21, source), (x + 0.5, y * 0.89), SHARED)
            arrow(ax, (x + 0.58, y), (target, y))
        ax.add_patch(plt.Circle((END, y), 0.13, color=color, zorder=3))
    for x in STAGES:
        for y in (TOP, BOTTOM):
            ax.text(x + 0.5, y, label, ha="center", va="center", fontsize=7, zorder=5, color=INK,
                    bbox={"boxstyle": "circle,pad=0.15", "fc": "white", "ec": INK, "lw": 0.8})


def attention(ax: Axes) -> None:
    chain(ax, MIDDLE, SHARED)
    for y, color in zip((TOP, BOTTOM), TASKS, strict=True):
        for i, x in enumerate(STAGES):
            ax.add_patch(plt.Circle((x + 0.3, y), 0.15, fc="white", ec=color, lw=1.8, zorder=3))
            ax.text(x + 0.3, y, "x", ha="center", va="center", fontsize=9, color=color, zorder=4)
            arrow(ax, (x + 0.05, 0.21 if y > 0 else -0.21), (x + 0.26, y - 0.16 * (1 if y > 0 else -1)), SHARED)
            arrow(ax, (x + 0.45, y), (STAGES[i + 1] + 0.15 if i + 1 < len(STAGES) else END - 0.13, y))
        ax.add_patch(plt.Circle((END, y), 0.13, color=color, zorder=3))


def alone(ax: Axes) -> None:
    for y, color, side in zip((0.62, -0.62), TASKS, (1, -1), strict=True):
        chain(ax, y, color)
        far = y + 0.68 * side
        for i, x in enumerate(STAGES):
            ax.add_patch(plt.Circle((x + 0.3, far), 0.15, fc="white", ec=color, lw=1.8, zorder=3))
            ax.text(x + 0.3, far, "x", ha="center", va="center", fontsize=9, color=color, zorder=4)
            arrow(ax, (x + 0.1, y + 0.21 * side), (x + 0.25, far - 0.15 * side))
            arrow(ax, (x + 0.45, far), (STAGES[i + 1] + 0.15 if i + 1 < len(STAGES) else END - 0.13, far))
        ax.add_patch(plt.Circle((END, far), 0.13, color=color, zorder=3))


PANELS = {"single: nothing": single, "shared: all stages": shared, "split: the first stages": split,
          "dense: a network that all read": dense,
          "cross_stitch: weighed sums (+)": lambda ax: units(ax, "+"),
          "nddr: 1x1 convolutions (*)": lambda ax: units(ax, "*"),
          "mtan: a network under masks (x)": attention, "stan: nothing, with masks (x)": alone}


def main() -> None:
    figure, axes = plt.subplots(2, 4, figsize=(13, 5.2))
    for ax, (title, draw) in zip(axes.flat, PANELS.items(), strict=True):
        box(ax, 0.0, MIDDLE, INK, 0.36)
        draw(ax)
        ax.set_title(title, fontsize=11)
        ax.set(xlim=(-0.35, 4.3), ylim=(-1.6, 1.6), aspect="equal")
        ax.axis("off")
    figure.text(0.5, 0.015, "black: the image; gray: shared stages; red and blue: a stage of one task, and what its "
                "decoder reads", ha="center", fontsize=9.5, color=INK)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(Path(__file__).with_name("encoders.png"), dpi=110)


if __name__ == "__main__":
    main()
