"""Show whether the tasks of a trained run go together: polyptych diagnose RUN [--batches 8]"""

from __future__ import annotations

import json as json_text
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from polyptych.cli._parsing import parse
from polyptych.record import write_json

NOTE = """Looks at batches of the training data: cosines and sizes of the tasks' gradients in what they share, stage by
stage; how fast each task learned; and how a step for one task changes the loss of another (Fifty et al., NeurIPS 2021).
The tables go to the screen, the numbers to RUN/diagnosis.json, the pictures into the report of the run. To look while
a run trains, train it with --monitoring.diagnose 0.05."""


@dataclass(frozen=True)
class Arguments:
    folder: tyro.conf.Positional[Path]
    """Run folder."""
    batches: int = 8
    """Number of batches to look at; with K tasks, each takes about as long as K + 1 training steps."""
    weights: Literal["", "last", "best"] = ""
    """Weights to look at (default: those the run selected)."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    json: Path | None = None
    """Another file for the numbers as JSON; - prints the JSON instead of the tables."""
    root: Annotated[Path | None, tyro.conf.arg(name="dataset.root")] = None
    """Where the data is now, if it moved since the run was trained; run.json is updated."""


def main(arguments: list[str]) -> None:
    options = parse(Arguments, arguments, "diagnose", note=NOTE)
    from rich.console import Console

    from polyptych.diagnosis import diagnose
    from polyptych.reports.diagnosis import terminal
    from polyptych.run import require_data

    require_data(options.folder, options.root, "diagnose")
    found = diagnose(options.folder, batches=options.batches, weights=options.weights, device=options.device)
    if options.json == Path("-"):
        print(json_text.dumps(found.to_json(), indent=2))
        return
    Console().print(terminal(found.findings))
    if options.json is not None:
        write_json(options.json, found.to_json())
        print(options.json)
    print(options.folder / "report.html")
