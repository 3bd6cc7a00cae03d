"""Count parameters and multiply-adds, measure memory and time: polyptych profile RECIPE|RUN [--size 288 384] ..."""

from __future__ import annotations

import json as json_text
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from polyptych.backbones._base import Backbone
from polyptych.cli._parsing import parse, take, with_choices
from polyptych.datasets._base import Dataset
from polyptych.decoders._base import Decoder
from polyptych.encoders._base import Encoder
from polyptych.errors import InputError, nearest
from polyptych.record import write_json

if TYPE_CHECKING:
    from polyptych.profiling.profile import Profile
    from polyptych.run import Run
    from polyptych.types import LabelInfo

SLOTS = ("dataset", "backbone", "encoder", "decoder")

NOTE = """Profiles the untrained network of a recipe or of a run folder. These choose components, whose own options
then become available:
--dataset, --backbone, --encoder, --decoder NAME: another component (see `polyptych list`);
--tasks A,B,...: tasks to predict;
--channels A=40,B=1,...: instead of tasks and data, the number of channels to predict for each task."""


@dataclass(frozen=True)
class Arguments:
    dataset: Dataset.Config
    """Dataset, which defines the number of classes."""
    backbone: Backbone.Config
    """Backbone, which extracts features."""
    encoder: Encoder.Config
    """Encoder: how features are shared."""
    decoder: Decoder.Config
    """Decoder: how predictions are refined."""
    size: tuple[int, int] | None
    """Height and width of the image."""
    device: str
    """auto, cpu, cuda, cuda:1, ..."""
    precision: Literal["float32", "bfloat16", "float16"]
    """Numeric precision of the network under autocast."""
    batch_size: int = 1
    """Batch size for which memory is measured."""
    training: bool = True
    """Also measure the memory of a training step."""
    repeats: int = 20
    """Number of timed passes."""
    seconds: float = 10.0
    """Approximate time limit, in seconds, for measuring latency and throughput each."""
    depth: int = 3
    """Number of module tree levels to print (-1: all)."""
    json: Path | None = None
    """Output file for all results as JSON; - prints the JSON instead of the tables."""


def main(arguments: list[str]) -> None:
    chosen, rest = take(arguments, {*SLOTS, "tasks", "channels"})
    name = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if name is None and not {"-h", "--help"} & set(rest):
        raise InputError("polyptych profile", "neither a recipe nor a run", "one of them",
                         "for instance `polyptych profile rooms`")
    if {"tasks", "channels"} <= chosen.keys():
        raise InputError("--channels", "--tasks as well", "one of the two", "leave --tasks out")
    run, labels = _load(name or "rooms")
    run = with_choices(run, chosen, SLOTS, rest, "profile")
    options = parse(Arguments, rest, "profile", note=NOTE, default=Arguments(
        run.dataset, run.backbone, run.encoder, run.decoder, run.size, run.execution.device, run.execution.precision))
    run = replace(run, dataset=options.dataset, backbone=options.backbone, encoder=options.encoder,
                  decoder=options.decoder)
    from polyptych.profiling.profile import profile_run

    result = profile_run(
        run, labels=labels, channels=_channels(chosen["channels"]) if "channels" in chosen else None,
        size=options.size, batch_size=options.batch_size, device=options.device, precision=options.precision,
        repeats=options.repeats, seconds=options.seconds, depth=options.depth, training=options.training)
    _show(result, options.json)


def _load(name: str) -> tuple[Run, dict[str, LabelInfo] | None]:
    """A recipe, or the run of a folder and what its data reported about the labels."""
    from polyptych.recipes._catalog import load, names
    from polyptych.run import read_run

    if name in names():
        return load(name)(), None
    if not Path(name).exists():
        raise InputError(f"recipe or run '{name}'", "neither a recipe nor a folder",
                         f"the folder of a run, or {nearest(name, names())}", "check the name")
    run, facts = read_run(Path(name))
    return run, facts.labels


def _channels(text: str) -> dict[str, int]:
    """``semseg=40,depth=1`` as numbers by task."""
    channels = {}
    for part in text.split(","):
        task, _, number = part.partition("=")
        if not task.isidentifier() or not number.isdecimal() or task in channels:
            raise InputError("--channels", f"'{part}'", "every task once, with a number",
                             "for instance --channels semseg=40,depth=1")
        channels[task] = int(number)
    return channels


def _show(result: Profile, path: Path | None) -> None:
    from rich.console import Console

    from polyptych.profiling.tables import terminal_profile

    if path == Path("-"):
        print(json_text.dumps(result.to_json(), indent=2))
        return
    Console().print(terminal_profile(result))
    if path is not None:
        write_json(path, result.to_json())
        print(path)
