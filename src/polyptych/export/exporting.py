"""Export of a trained run to one file, which is compared with the network before it is put in place."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from polyptych.encoders._low_rank import merge
from polyptych.errors import InputError, first_line
from polyptych.export.comparison import Difference, compare
from polyptych.export.formats import FORMATS, FormatName, not_installed
from polyptych.export.graph import Graph, Size, capture
from polyptych.export.metadata import ExportMetadata
from polyptych.export.runtime import FileModel
from polyptych.networks import Network
from polyptych.prediction.model import load_network
from polyptych.ranges import LARGEST_SIDE
from polyptych.record import put_in_place
from polyptych.run import read_run


@dataclass(frozen=True)
class Exported:
    """The exported file, and its differences from the network."""

    path: Path
    metadata: ExportMetadata
    differences: dict[str, Difference]


def export(folder: Path, *, format: FormatName = "onnx", size: Size | None = None, dynamic: bool = False,
           out: Path | None = None, tolerance: float = 1e-4, weights: str = "") -> Exported:
    """Write a run's network as one file.

    Args:
        format: a name in :data:`polyptych.export.formats.FORMATS`.
        size: the only height and width that the graph accepts; by default those of training.
        dynamic: accept any size instead.
        out: the file; by default ``RUN/model.onnx`` or ``RUN/model.pt2``.
        tolerance: the largest difference from the network, see :func:`polyptych.export.comparison.compare`.
        weights: ``last`` or ``best``; by default what the run selects.

    Raises:
        InputError: a bad option, no such run, a network that cannot be captured as a graph, or a difference above the
            tolerance. No file is then written, and an existing one is unchanged.
    """
    check(format, size, dynamic, out, tolerance)
    run, tasks, network, step = load_network(folder, weights)
    merge(network)
    fixed = None if dynamic else size or run.size
    facts = read_run(folder)[1]
    mean, std = ((float(a), float(b), float(c)) for a, b, c in (network.mean.flatten(), network.std.flatten()))
    metadata = ExportMetadata(
        name=folder.resolve().name, protocol=facts.protocol, tasks=run.tasks,
        labels={task: facts.labels[task] for task in tasks}, mean=mean, std=std, size=fixed or run.size,
        fixed=fixed is not None, step=step, multiple=network.encoder.multiple,
        outputs={name: task.meaning for name, task in tasks.items()})
    target = out or folder / f"model{FORMATS[format].ending}"
    differences = write(network, metadata, target, format, tolerance)
    return Exported(target, metadata, differences)


def write(network: Network, metadata: ExportMetadata, target: Path, format: FormatName,
          tolerance: float) -> dict[str, Difference]:
    """Capture, save next to the target, read back, compare, move into place."""
    names = tuple(metadata.tasks)
    size = metadata.size if metadata.fixed else None
    try:
        program = capture(Graph(network.eval(), names, size))
    except Exception as error:
        raise InputError("this network", f"'{first_line(error)}' from torch.export",
                         "a network that can be captured as a graph",
                         "report it with this message" if size else "try a fixed size: --size H W") from error
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".export-") as place:
            temporary = Path(place) / f"model{FORMATS[format].ending}"
            model = save(program, metadata, temporary, format)
            near = metadata.size or (97, 130)
            differences = compare(model, network, tolerance, near)
            put_in_place(temporary, target)
    except OSError as error:
        raise InputError(target, f"'{error.strerror}'", "a writable path", "choose another --out") from None
    return differences


def save(program: torch.export.ExportedProgram, metadata: ExportMetadata, path: Path,
         format: FormatName) -> FileModel:
    """Write one file with its metadata, and open it."""
    kind = FORMATS[format].load()
    kind.write(program, metadata, path)
    return kind.open(path)


def check(format: str, size: Size | None, dynamic: bool, out: Path | None, tolerance: float) -> None:
    """Check the options before anything is loaded."""
    if format not in FORMATS:
        raise InputError("--format", format, f"one of {', '.join(FORMATS)}", "choose one")
    if size is not None and dynamic:
        raise InputError("--dynamic", f"it and --size {size[0]} {size[1]}", "one of the two", "leave one out")
    if size is not None and not all(1 <= side <= LARGEST_SIDE for side in size):
        raise InputError("--size", f"{size[0]} {size[1]}", f"a height and width from 1 to {LARGEST_SIDE}",
                         "choose both in this range")
    if not 0 < tolerance < float("inf"):
        raise InputError("--tolerance", f"{tolerance:g}", "a positive number", "use for instance 1e-4")
    if out is not None and (out.suffix.lower() != FORMATS[format].ending or out.is_dir()):
        raise InputError("--out", str(out), f"a file that ends in {FORMATS[format].ending}",
                         "rename it, or change --format")
    if missing := not_installed(FORMATS[format].writing):
        raise InputError(f"--format {format}", f"no {', '.join(missing)}", "the packages that write this format",
                         "pip install 'polyptych[export]'")
