"""Write a trained run as one file that runs elsewhere: polyptych export RUN [--format onnx|torch] [--dynamic]"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from polyptych.cli._parsing import parse


@dataclass(frozen=True)
class Arguments:
    folder: tyro.conf.Positional[Path]
    """Run folder."""
    format: Literal["onnx", "torch"] = "onnx"
    """onnx for onnxruntime and others, torch for torch.export (.pt2)."""
    out: Path | None = None
    """File that is written; by default model.onnx or model.pt2 in the run folder."""
    size: tuple[int, int] | None = None
    """The only height and width that the file accepts; by default those of the training."""
    dynamic: bool = False
    """Accept images of any size."""
    quantize: Literal["", "dynamic", "static"] = ""
    """INT8 weights; static also fixes the ranges of activations, from validation images."""
    calibration: int = 32
    """Validation images from which --quantize static learns ranges."""
    tolerance: float = 1e-4
    """Largest difference from the network; more is an error, and nothing is written."""
    weights: Literal["", "last", "best"] = ""
    """Weights that are exported; empty takes what the run selects."""


def main(arguments: list[str]) -> None:
    options = parse(Arguments, arguments, "export")
    if options.quantize:
        from rich.console import Console

        from polyptych.export.quantization import quantize

        print("float32 first, to compare with; then INT8, measured on the validation split")
        done = quantize(options.folder, options.quantize, size=options.size, dynamic=options.dynamic, out=options.out,
                        format=options.format, tolerance=options.tolerance, weights=options.weights,
                        calibration=options.calibration)
        Console().print(done.table())
        print(done.path)
        return
    from polyptych.export.exporting import export

    exported = export(options.folder, format=options.format, size=options.size, dynamic=options.dynamic,
                      out=options.out, tolerance=options.tolerance, weights=options.weights)
    for task, difference in exported.differences.items():
        print(f"{task}: differs from the network by at most {difference.value:.2g}")
    print(exported.path)
