"""Rewrite the report of a run without measuring anything again: polyptych report RUN"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from polyptych.cli._parsing import parse


@dataclass(frozen=True)
class Arguments:
    folder: tyro.conf.Positional[Path]
    """Run folder."""


def main(arguments: list[str]) -> None:
    options = parse(Arguments, arguments, "report")
    from polyptych.folder_lock import hold
    from polyptych.reports.page import write_report

    with hold(options.folder):
        print(write_report(options.folder))
