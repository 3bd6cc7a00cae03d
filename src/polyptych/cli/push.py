"""Publish a run on Hugging Face, with a model card: polyptych push RUN OWNER/NAME [--onnx] [--private]"""

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
    name: tyro.conf.Positional[str]
    """Repository, OWNER/NAME; made if it is not there."""
    onnx: bool = False
    """Also export the network to ONNX and add the file."""
    private: bool = False
    """Make a new repository private."""
    license: str = ""
    """License of the weights, for instance MIT (default: that of an imported network's authors)."""
    weights: Literal["", "last", "best"] = ""
    """Weights to publish (default: those the run selected)."""


def main(arguments: list[str]) -> None:
    options = parse(Arguments, arguments, "push")
    from polyptych.pushing import push

    print(push(options.folder, options.name, weights=options.weights, onnx=options.onnx, private=options.private,
               license=options.license))
