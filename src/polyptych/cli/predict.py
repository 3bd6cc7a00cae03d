"""Paint every task of your own images: polyptych predict RUN IMAGE... [--out DIR] [--arrays]"""

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
    inputs: tyro.conf.Positional[tuple[Path, ...]]
    """Images, or folders of images."""
    out: Path = Path("predictions")
    """Folder that receives the pictures."""
    arrays: bool = False
    """Also write raw arrays (.npy): class ids, meters, unit vectors, probabilities."""
    weights: Literal["", "last", "best"] = ""
    """Weights to use; empty takes what the run selects."""


def main(arguments: list[str]) -> None:
    options = parse(Arguments, arguments, "predict")
    from polyptych.prediction import predict as predict_run

    written = predict_run(options.folder, list(options.inputs), options.out, arrays=options.arrays,
                          weights=options.weights)
    print(written[-1])
