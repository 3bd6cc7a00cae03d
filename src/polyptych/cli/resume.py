"""Resume an interrupted run exactly where it left off: polyptych resume RUN"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from polyptych.cli._parsing import parse


@dataclass(frozen=True)
class Arguments:
    folder: tyro.conf.Positional[Path]
    """Run folder."""
    root: Annotated[Path | None, tyro.conf.arg(name="dataset.root")] = None
    """Where the data is now, if it moved since the run was trained; run.json is updated."""


def main(arguments: list[str]) -> None:
    options = parse(Arguments, arguments, "resume")
    from polyptych.run import read_run, require_data
    from polyptych.training import train as train_run

    require_data(options.folder, options.root, f"resume {options.folder}")
    train_run(read_run(options.folder)[0], options.folder, resume=True)
