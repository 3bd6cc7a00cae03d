"""Evaluate a trained run at native resolution, as a table and as JSON: polyptych evaluate RUN [--split test]"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from polyptych.cli._parsing import parse


@dataclass(frozen=True)
class Arguments:
    folder: tyro.conf.Positional[Path]
    """Run folder, or hf://OWNER/NAME."""
    split: Literal["test", "val", "train"] = "test"
    """Split to evaluate."""
    weights: Literal["", "last", "best"] = ""
    """Weights to evaluate (default: those the run selected)."""
    root: Annotated[Path | None, tyro.conf.arg(name="dataset.root")] = None
    """Where the data is now, if it moved since the run was trained; run.json is updated."""


def main(arguments: list[str]) -> None:
    options = parse(Arguments, arguments, "evaluate")
    from rich.console import Console

    from polyptych.evaluation import evaluate as evaluate_run
    from polyptych.hub import local_folder
    from polyptych.reports.tables import terminal_table
    from polyptych.run import require_data

    folder = local_folder(options.folder)
    require_data(folder, options.root, f"evaluate {options.folder}")
    results = evaluate_run(folder, splits=(options.split,), weights=options.weights)
    Console().print(terminal_table(results[options.split]))
    print(folder / "evaluation" / f"{options.split}.json")
    results[options.split].require_numbers(folder)
