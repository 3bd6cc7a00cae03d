"""Saliency measures (maxF, IoU, MAE) of saved maps: polyptych evaluate-saliency PREDICTIONS TRUTHS"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from polyptych.cli._parsing import parse
from polyptych.errors import InputError

NOTE = """maxF is that of ATRC and the papers after it (all pixels pooled); maxF_SOD and MAE are those of salient object
detection (maps scaled to their maximum, precision and recall averaged over images); mIoU_per_image and
maxF_beta1_per_image are those of ASTMT and the survey of Vandenhende et al. Never compare one measure with another."""


@dataclass(frozen=True)
class Arguments:
    predictions: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="PREDICTIONS")] = None
    """Folder of saliency maps at native size: .png (8 or 16 bits) or .npy (0 to 1)."""
    truths: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="TRUTHS")] = None
    """Folder of ground truth with the same names: .png of 0 and 255, or of 0 and 1."""
    ignore: int | None = None
    """Ground-truth value that means no label, for example 255 in masks of 0 and 1; those pixels do not count."""
    double_sigmoid: bool = False
    """Compute maxF like InvPT's code, which applies the sigmoid twice."""
    images: Path | None = None
    """Text file with the names to measure (default: all, and every file must have its counterpart)."""
    out: Path | None = None
    """Output file for the measures, as JSON."""


def main(arguments: list[str]) -> None:
    options = parse(Arguments, arguments, "evaluate_saliency", note=NOTE)
    if options.predictions is None or options.truths is None:
        raise InputError("polyptych evaluate-saliency", "fewer than two folders", "predictions and ground truth",
                         "for instance `polyptych evaluate-saliency predictions masks`")
    from rich.console import Console
    from rich.table import Table

    from polyptych.metrics.saliency_folders import evaluate_saliency_maps
    from polyptych.progress import counting
    from polyptych.record import write_json

    if options.out is not None:  # a place that cannot be written is better known before the images are measured
        options.out.parent.mkdir(parents=True, exist_ok=True)
    with counting("images") as report:
        metric, names = evaluate_saliency_maps(
            options.predictions, options.truths, images=options.images, ignore=options.ignore,
            double_sigmoid=options.double_sigmoid, progress=report)
    measures = metric.compute()
    table = Table("measure", "value", title=f"{len(names)} images")
    for name, value in measures.items():
        table.add_row(f"{name}{'' if name == 'MAE' else ' (%)'}", f"{value:.{4 if name == 'MAE' else 2}f}")
    Console().print(table)
    if options.out is not None:
        how = {"predictions": str(options.predictions), "truths": str(options.truths), "ignore": options.ignore,
               "list": None if options.images is None else str(options.images)}
        write_json(options.out, {**measures, "images": len(names), "options": {**metric.options, **how}})
        print(options.out)
