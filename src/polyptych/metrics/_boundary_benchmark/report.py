"""Output files of the benchmark: JSON, two tables, and the precision-recall curve with lines of equal F."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from polyptych.errors import InputError
from polyptych.metrics._boundary_benchmark.counts import COLUMNS
from polyptych.record import write_json

if TYPE_CHECKING:
    from polyptych.metrics.boundary_benchmark import BoundaryBenchmark

_BLUE, _GRAY = "#3b82c4", "#7d858f"


def write_report(folder: Path, benchmark: BoundaryBenchmark, options: dict[str, Any]) -> Path:
    """Write ``result.json``, ``thresholds.csv``, ``images.csv`` and ``precision_recall.png``; made if need be.

    Args:
        options: how the files were read, for the record.

    Returns:
        The path of ``result.json``.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_csv(folder / "thresholds.csv", ("threshold", "recall", "precision", "F", *COLUMNS), (
            (threshold, *point, *counts) for threshold, point, counts in zip(
                benchmark.protocol.thresholds, zip(*benchmark.curve(), strict=True),
                np.sum(benchmark.counts, axis=0), strict=True)))
        _write_csv(folder / "images.csv", ("image", "threshold", "recall", "precision", "F"),
                   ((name, *point) for name, point in benchmark.best_of_images().items()))
        draw(benchmark).savefig(folder / "precision_recall.png", dpi=150)
        write_json(folder / "result.json", {**benchmark.compute(), "images": len(benchmark.names),
                                            "protocol": asdict(benchmark.protocol), "options": options})
    except OSError as error:
        raise InputError(folder, f"{type(error).__name__}: {error.strerror or error}", "a folder that can be written",
                         "choose another one") from None
    return folder / "result.json"


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterable[Iterable[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([f"{x:.6g}" if isinstance(x, float) else x for x in row] for row in rows)


def draw(benchmark: BoundaryBenchmark) -> Figure:
    """Precision over recall, the best threshold, and lines of equal F."""
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlim=(0, 1), ylim=(0, 1), xlabel="Recall", ylabel="Precision", aspect="equal")
    for level in np.arange(1, 10) / 10:
        recall = np.linspace(level / (2 - level), 1, 200)  # precision 1 down to that of recall 1
        axes.plot(recall, level * recall / (2 * recall - level), color=_GRAY, linewidth=0.6, alpha=0.5)
        axes.annotate(f"F {level:.1f}", (1, level / (2 - level)), (2, 0), textcoords="offset points", fontsize=6,
                      color=_GRAY, va="center", annotation_clip=False)
    scores, curve = benchmark.compute(), benchmark.curve()
    known = (curve.recall > 0) | (curve.precision > 0)
    axes.plot(curve.recall[known], curve.precision[known], color=_BLUE, linewidth=1.6)
    axes.plot(scores["ods_recall"], scores["ods_precision"], "o", color=_BLUE, markersize=5)
    axes.set_title(f"{benchmark.protocol.name}, {len(benchmark.names)} images: ODS {scores['odsF']:.3f}, "
                   f"OIS {scores['oisF']:.3f}, AP {scores['AP']:.3f}", fontsize=9)
    return figure
