"""Resume an interrupted run exactly where it left off: polyptych resume RUN"""

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
    options = parse(Arguments, arguments, "resume")
    from polyptych.run import read_run
    from polyptych.training import train as train_run

    train_run(read_run(options.folder)[0], options.folder, resume=True)
