"""Export a trained run to a single portable file: polyptych export RUN [--format FORMAT] [--dynamic]"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from polyptych.cli._parsing import parse
from polyptych.export.formats import FormatName


@dataclass(frozen=True)
class Arguments:
    folder: tyro.conf.Positional[Path]
    """Run folder."""
    format: FormatName = "onnx"
    out: Path | None = None
    """Output file (default: "model" with the ending of the format, in the run folder)."""
    size: tuple[int, int] | None = None
    """The one height and width that the file accepts (default: the training size)."""
    dynamic: bool = False
    """Accept images of any size."""
    quantize: Literal["", "dynamic", "static"] = ""
    """Quantize weights to INT8; static also fixes the activation ranges, using validation images."""
    calibration: int = 32
    """Number of validation images used to calibrate --quantize static."""
    tolerance: float = 1e-4
    """Largest allowed difference from the network's output; beyond it, the export fails and writes nothing."""
    weights: Literal["", "last", "best"] = ""
    """Weights to export (default: those the run selected)."""
    root: Annotated[Path | None, tyro.conf.arg(name="dataset.root")] = None
    """For --quantize: where the data is now, if it moved since the run was trained; run.json is updated."""


def main(arguments: list[str]) -> None:
    options = parse(Arguments, arguments, "export")
    if options.quantize:
        from polyptych.export.quantization import check_quantized

        check_quantized(options.format, options.size, options.dynamic, options.out, options.tolerance,
                        options.calibration)
    if options.quantize or options.root is not None:
        from polyptych.run import require_data

        require_data(options.folder, options.root, f"export {options.folder} --quantize {options.quantize or 'static'}")
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
