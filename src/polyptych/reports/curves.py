"""Curves of a run over its steps: losses, validation, learning rate, throughput, task weights, gradients.

Each curve is a small plot of its own, so that a page can arrange them for any width; :func:`sheet` draws them all as
one picture.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FormatStrFormatter, LogLocator, MaxNLocator, NullFormatter

from polyptych.metrics._accumulation import shown_name
from polyptych.reports import style
from polyptych.reports.style import COLORS, PLAIN, TEXT

PANEL = (3.5, 2.1)  # inches
RATES = "Learning rate, speed and weights"  # heading of what is neither loss nor metric
GRADIENTS = "Gradients of the tasks"
MOST_POINTS = 500  # of one line; more would not be visible


@dataclass(frozen=True, eq=False)
class Line:
    """One curve; values that are not finite are gaps."""

    label: str
    color: str
    steps: Float[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]


@dataclass(frozen=True, eq=False)
class Plot:
    """One small plot.

    Attributes:
        group: heading under which plots are grouped.
        title: what is shown; plots of one group differ in it.
        remark: a few words at the right of the title, for instance the last value.
        lines: the curves; several get a key.
        smooth: show the values faintly and their moving average strongly.
        from_zero: the axis begins at zero.
    """

    group: str
    title: str
    remark: str
    lines: tuple[Line, ...]
    smooth: bool = False
    from_zero: bool = False

    @property
    def description(self) -> str:
        """The plot in words, for those who cannot see it."""
        count = max(len(line.steps) for line in self.lines)
        spoken = f"{self.group}: {self.title} over {count} point{'s' if count != 1 else ''}"
        return f"{spoken}, {self.remark}" if self.remark else spoken


def plots(events: Iterable[Mapping[str, Any]], headlines: Mapping[str, str] | None = None) -> list[Plot]:
    """The plots that a log supports; none for an empty log. A value that was measured once is not a curve.

    Args:
        events: the lines of ``metrics.jsonl``. If a step occurs twice, the later line is used.
        headlines: the headline metric of each task; by default the first one in the log.
    """
    events = list(events)
    train = _by_step(event for event in events if event.get("event") == "train")
    validation = _by_step(event for event in events if event.get("event") == "validation")
    tasks = _keys(train, "losses") or _keys(validation, "metrics")
    tasks += [task for task in _keys(validation, "metrics") if task not in tasks]
    color = {task: COLORS[index % len(COLORS)] for index, task in enumerate(tasks)}
    found: list[Plot | None] = [_losses(train, task, color[task]) for task in _keys(train, "losses")]
    found += [_metric(validation, task, (headlines or {}).get(task), color[task])
              for task in _keys(validation, "metrics")]
    found += [
        _single(validation, "skill", "Validation", "mean skill"),
        _single(train, "learning_rate", RATES, "learning rate"),
        _single(train, "images_per_second", RATES, "images per second", from_zero=True),
        _weights(train, color),
        *_gradients(train, color),
    ]
    return [plot for plot in found if plot is not None and any(map(_is_curve, plot.lines))]


def svg(plot: Plot, end: float) -> str:
    """One plot as an ``<svg>`` element for a page: transparent, its text in the color of the page's text.

    Args:
        end: the step at which the axis ends, so that adjacent plots can be compared.
    """
    with style.figure(PANEL, text=8) as figure:
        _draw(figure.subplots(), plot, end)
        return style.svg(figure, f"{plot.group}/{plot.title}", page=True)


def sheet(found: Sequence[Plot]) -> str:
    """All plots as one SVG file on white, three in a row."""
    columns = min(3, len(found))
    rows = math.ceil(len(found) / columns)
    with style.figure((PANEL[0] * columns, PANEL[1] * rows), text=8) as figure:
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for axes, plot in zip(panels, found, strict=False):
            _draw(axes, plot, last_step(found))
        for axes in list(figure.axes)[len(found):]:
            axes.set_visible(False)
        figure.supxlabel("optimizer step", fontsize=8)
        return style.svg(figure, "sheet", page=False)


def last_step(found: Sequence[Plot]) -> float:
    """The last step of any plot."""
    return max((float(line.steps[-1]) for plot in found for line in plot.lines), default=0.0)


def moving_average(values: Float[np.ndarray, " n"], window: float) -> Float[np.ndarray, " n"]:
    """Exponential moving average of about ``window`` values, unbiased at the start. Values that are not
    finite stay gaps and do not enter."""
    keep = 1 - 2 / (window + 1)
    total = weight = 0.0
    average = np.full(len(values), np.nan)
    for index, value in enumerate(values):
        if math.isfinite(value):
            total, weight = keep * total + value, keep * weight + 1
            average[index] = total / weight
    return average


# -- from the log to plots -----------------------------------------------------------------------------------


def _by_step(events: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    latest = {event["step"]: event for event in events}
    return [latest[step] for step in sorted(latest)]


def _keys(events: Sequence[Mapping[str, Any]], field: str) -> list[str]:
    return list(dict.fromkeys(key for event in events for key in event.get(field, {})))


def _line(events: Sequence[Mapping[str, Any]], label: str, color: str, values: Iterable[Any]) -> Line:
    numbers = np.array([math.nan if value is None else value for value in values], np.float64)
    numbers[~np.isfinite(numbers)] = np.nan
    return Line(label, color, np.array([event["step"] for event in events], np.float64), numbers)


def _losses(train: Sequence[Mapping[str, Any]], task: str, color: str) -> Plot:
    line = _line(train, task, color, (event.get("losses", {}).get(task) for event in train))
    shown = line.values if _few(line) else moving_average(line.values, _window(line))
    return Plot("Training loss", f"{task} loss", f"last {_short(_last(shown))}", (line,), smooth=True)


def _metric(validation: Sequence[Mapping[str, Any]], task: str, name: str | None, color: str) -> Plot:
    results = [event.get("metrics", {}).get(task, {}) for event in validation]
    names = list(dict.fromkeys(key for result in results for key in result))
    name = name if name in names else next(iter(names), "")
    line = _line(validation, task, color, (result.get(name) for result in results))
    return Plot("Validation", f"{task} {shown_name(str(name))}".strip(), f"last {_short(_last(line.values))}", (line,))


def _single(events: Sequence[Mapping[str, Any]], field: str, group: str, title: str,
            from_zero: bool = False) -> Plot | None:
    line = _line(events, title, PLAIN, (event.get(field) for event in events))
    if not np.isfinite(line.values).any():
        return None
    return Plot(group, title, f"last {_short(_last(line.values))}", (line,), from_zero=from_zero)


def _weights(train: Sequence[Mapping[str, Any]], color: Mapping[str, str]) -> Plot | None:
    weights = [event.get("weights", {}) for event in train]
    lines = tuple(_line(train, task, color.get(task, PLAIN), (weight.get(task) for weight in weights))
                  for task in _keys(train, "weights"))
    finite = [line.values[np.isfinite(line.values)] for line in lines]
    varies = any(len(values) and np.ptp(values) > 1e-6 * np.abs(values).max() for values in finite)
    return Plot(RATES, "task weights", "", lines) if varies else None


def _gradients(train: Sequence[Mapping[str, Any]], color: Mapping[str, str]) -> list[Plot | None]:
    """What gradient balancers see: the norm of each task's gradient, and the angle between every two."""
    names = _keys(train, "diagnostics")

    def lines(kind: str, paint: Mapping[str, str]) -> tuple[Line, ...]:
        found = [name for name in names if name.startswith(f"{kind}/")]
        return tuple(_line(train, name.partition("/")[2].replace("/", " and "),
                           paint.get(name.partition("/")[2], COLORS[index % len(COLORS)]),
                           (event.get("diagnostics", {}).get(name) for event in train))
                     for index, name in enumerate(found))

    fallbacks = _line(train, "fallbacks", PLAIN, (event.get("diagnostics", {}).get("fallbacks") for event in train))
    norms, cosines = lines("gradient_norm", color), lines("cosine", {})
    return [
        Plot(GRADIENTS, "gradient norms", "", norms, smooth=True) if norms else None,
        Plot(GRADIENTS, "cosines of gradients", "", cosines, smooth=True) if cosines else None,
        Plot(GRADIENTS, "steps with equal weights", f"last {_short(_last(fallbacks.values))}", (fallbacks,),
             from_zero=True) if np.nansum(fallbacks.values) > 0 else None,
    ]


def _is_curve(line: Line) -> bool:
    """Whether a line has several points; or none that is finite, which the reader must know."""
    return len(line.steps) > 1 and int(np.isfinite(line.values).sum()) != 1


def _few(line: Line) -> bool:
    """Too few values for a moving average: each is shown as a dot."""
    return int(np.isfinite(line.values).sum()) <= 12


def _window(line: Line) -> float:
    return max(3.0, float(np.isfinite(line.values).sum()) / 20)


def _last(values: Float[np.ndarray, " n"]) -> float:
    return float(values[-1]) if len(values) else math.nan


def _clipped(title: str) -> str:
    return title if len(title) <= 32 else title[:31] + "…"


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "not finite"


# -- drawing -------------------------------------------------------------------------------------------------


def _draw(axes: Axes, plot: Plot, end: float) -> None:
    for line in plot.lines:
        _draw_line(axes, line, plot.smooth)
    values = np.concatenate([line.values for line in plot.lines])
    finite = values[np.isfinite(values)]
    if len(finite):
        _scale(axes, plot, finite)
    else:
        axes.text(0.5, 0.5, "no finite value", ha="center", va="center", transform=axes.transAxes)
        axes.set_yticks([])
    axes.set_xlim(0, 1.02 * end or 1)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_title(_clipped(plot.title), loc="left", fontweight="bold",
                   color=plot.lines[0].color if len(plot.lines) == 1 else TEXT)
    axes.set_title(plot.remark, loc="right", fontsize=8)
    if len(plot.lines) > 1:
        axes.legend(fontsize=7, handlelength=1.2, ncols=2, loc="best")


def _draw_line(axes: Axes, line: Line, smooth: bool) -> None:
    few = _few(line)
    look: dict[str, Any] = {"color": line.color, "label": line.label, "marker": "o" if few else None, "markersize": 3}
    if not smooth or few:
        axes.plot(*_thinned(line.steps, line.values), linewidth=1.4, **look)
        return
    axes.plot(*_thinned(line.steps, line.values), color=line.color, linewidth=0.7, alpha=0.3)
    average = moving_average(line.values, _window(line))
    axes.plot(*_thinned(line.steps, average), linewidth=1.5, **look)


def _scale(axes: Axes, plot: Plot, finite: Float[np.ndarray, " n"]) -> None:
    low, high = float(finite.min()), float(finite.max())
    if plot.smooth and low > 0 and high / low > 10:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 200 else (1,), numticks=8))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        return
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    if plot.from_zero or 0 <= low < 0.5 * high:  # the ground line is worth the space
        axes.set_ylim(bottom=0)


def _thinned(steps: Float[np.ndarray, " n"],
             values: Float[np.ndarray, " n"]) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """About MOST_POINTS points: of each stretch the lowest and the highest, so that no spike is lost."""
    if len(values) <= MOST_POINTS:
        return steps, values
    kept = {0, len(values) - 1}
    for stretch in np.array_split(np.arange(len(values)), MOST_POINTS // 2):
        inside = values[stretch]
        if np.isfinite(inside).any():
            kept |= {int(stretch[np.nanargmin(inside)]), int(stretch[np.nanargmax(inside)])}
        else:
            kept.add(int(stretch[0]))
    order = sorted(kept)
    return steps[order], values[order]
