"""Boundary scores (odsF, oisF, AP) of saved maps: polyptych evaluate-boundaries PREDICTIONS TRUTHS [--protocol bsds]"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from polyptych.cli._parsing import parse, take
from polyptych.errors import InputError

if TYPE_CHECKING:
    from polyptych.metrics.boundary_benchmark import BoundaryBenchmark

NOTE = """--protocol bsds|nyud|pascal|nyud_survey|pascal_survey sets the defaults of the options below (default: bsds).
nyud and pascal match the edge tool of ASTMT, ATRC and InvPT; *_survey is the variant without suppression of Vandenhende
et al. Scores of different protocols must not be compared."""


@dataclass(frozen=True)
class Arguments:
    predictions: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="PREDICTIONS")] = None
    """Folder of predictions at native size: .png (8 or 16 bits), .npy (0 to 1), or .mat with ucm2 or segs."""
    truths: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="TRUTHS")] = None
    """Folder of ground truth with the same names: .mat (groundTruth, LabelMap, segmentation) or .png."""
    nms: bool = False
    """Suppress non-maxima before thresholding."""
    thresholds: int = 99
    """Number of thresholds, spaced as the protocol defines."""
    max_dist: float = 0.0075
    """Matching tolerance, as a fraction of the image's diagonal."""
    truth: Literal["auto", "edges", "regions", "edges-as-regions"] = "auto"
    """What ground-truth maps show. auto: a picture of 0 and 255 shows boundaries, any other one regions.
    edges-as-regions reproduces how the tool behind published NYUD scores treats pictures of boundaries."""
    ucm: Literal["contours", "partition"] = "contours"
    """How ucm2 is read: every second value, or as the contours of the regions at each threshold, like SEISM."""
    images: Path | None = None
    """Text file with the names to measure (default: all, and every file must have its counterpart)."""
    workers: int | None = None
    """Number of processes (default: the number of cores, or fewer if the work is small)."""
    out: Path | None = None
    """Output folder for result.json, thresholds.csv, images.csv and precision_recall.png."""


def main(arguments: list[str]) -> None:
    from polyptych.metrics._boundary_benchmark.protocols import protocol

    chosen, rest = take(arguments, {"protocol"})
    kind = protocol(chosen.get("protocol", "bsds"))
    options = parse(Arguments, rest, "evaluate_boundaries", note=NOTE, default=replace(
        Arguments(), nms=kind.nms, thresholds=len(kind.thresholds), max_dist=kind.max_dist))
    if options.predictions is None or options.truths is None:
        raise InputError("polyptych evaluate-boundaries", "fewer than two folders", "predictions and ground truth",
                         "for instance `polyptych evaluate-boundaries predictions groundTruth`")
    kind = protocol(kind.name, options.thresholds, options.nms, options.max_dist)
    from polyptych.metrics.boundary_benchmark import evaluate_folders
    from polyptych.progress import counting

    if options.out is not None:  # a place that cannot be written is better known before the images are measured
        options.out.mkdir(parents=True, exist_ok=True)
    with counting("images") as report:
        benchmark = evaluate_folders(
            options.predictions, options.truths, kind, images=options.images, truth=options.truth, ucm=options.ucm,
            workers=options.workers, progress=report)
    _show(benchmark)
    if options.out is not None:
        from polyptych.metrics._boundary_benchmark.report import write_report

        how = {"predictions": str(options.predictions), "truths": str(options.truths), "truth": options.truth,
               "ucm": options.ucm, "list": None if options.images is None else str(options.images)}
        print(write_report(options.out, benchmark, how))


def _show(benchmark: BoundaryBenchmark) -> None:
    from rich.console import Console
    from rich.table import Table

    scores, kind = benchmark.compute(), benchmark.protocol
    table = Table("", "threshold", "recall", "precision", "F", title=f"{kind.name}, {len(benchmark.names)} images")
    for title, name in (("ODS", "ods"), ("OIS", "ois")):
        values = (scores[f"{name}_threshold"], scores[f"{name}_recall"], scores[f"{name}_precision"],
                  scores[f"{name}F"])
        table.add_row(title, *(f"{value:.4f}" for value in values))
    console = Console()
    console.print(table)
    console.print(f"AP {scores['AP']:.4f}, ODS between thresholds {scores['odsF_interpolated']:.4f} "
                  f"({len(kind.thresholds)} thresholds, {'with' if kind.nms else 'no'} suppression, "
                  f"tolerance {kind.max_dist:g} of the diagonal)", soft_wrap=True, highlight=False)
