"""Rewrite the report of a run without measuring anything again: polyptych report RUN"""

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
    options = parse(Arguments, arguments, "report")
    from polyptych.folder_lock import hold
    from polyptych.reports.page import write_report
    from polyptych.run import require_data

    if options.root is not None:
        require_data(options.folder, options.root, f"report {options.folder}")
    with hold(options.folder):
        print(write_report(options.folder))
