"""View predictions in the browser, on this machine only: polyptych view RUN|MODEL.onnx [MORE] [--port PORT]"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from polyptych.cli._parsing import parse
from polyptych.errors import InputError


@dataclass(frozen=True)
class Arguments:
    models: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or models that `polyptych export` wrote; the page switches between them."""
    port: int = 0
    """Port on 127.0.0.1 (0: any free port)."""
    limit: int = 32
    """Maximum size of an image file, in MiB."""
    browser: bool = True
    """Open the page in the browser when started from a terminal."""
    flip: bool = False
    """Average with the prediction for the mirrored image."""
    weights: Literal["", "last", "best"] = ""
    """Weights of runs (default: those each run selected)."""
    device: str = "auto"
    """Device for runs: auto, cpu, cuda, cuda:1, ..."""


def main(arguments: list[str]) -> None:
    options = parse(Arguments, arguments, "view")
    if not options.models:
        raise InputError("polyptych view", "no model", "a run folder or an exported model", "name at least one")
    if options.limit < 1:
        raise InputError("--limit", str(options.limit), "1 or more", "raise it")
    missing = [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError("polyptych view", "a page to serve, which needs other packages", " and ".join(missing),
                         "pip install 'polyptych[view]'")
    from polyptych.prediction.predictor import load
    from polyptych.viewer.server import serve

    predictors = [load(path, weights=options.weights, device=options.device, flip=options.flip)
                  for path in options.models]

    def say(address: str) -> None:
        print(f"{address} shows {', '.join(p.model.caption for p in predictors)}; Ctrl-C stops", flush=True)
        if options.browser and sys.stdout.isatty():
            import webbrowser

            webbrowser.open(address)

    serve(predictors, options.port, options.limit, say)
