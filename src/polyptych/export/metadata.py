"""Metadata of an exported file: tasks, labels, sizes, origin. JSON, read strictly."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import msgspec

from polyptych import __version__
from polyptych.errors import InputError, nearest
from polyptych.ranges import LARGEST_SIDE
from polyptych.record import decode, encode
from polyptych.tasks._base import CATALOG, Task
from polyptych.types import LabelInfo

KEY = "polyptych"
"""Key of the JSON text in ONNX's ``metadata_props``; in a .pt2 archive it is ``extra/polyptych``."""
FORMAT = 2
"""Version of the metadata format. It is raised when older versions can no longer read new files."""
LARGEST = 4 * 2**20  # characters; ample for thousands of class names
_NAME = re.compile(r"\w[\w.+ -]{0,100}")


@dataclass(frozen=True, kw_only=True)
class ExportMetadata:
    """The contents of the metadata.

    Attributes:
        name: name of the run.
        protocol: protocol of its data.
        tasks: the tasks, in the order of the outputs.
        labels: label information of the dataset: classes, colors, units.
        mean, std: normalization of RGB in [0, 1]; for information only, because the graph applies it.
        size: height and width of the training images; None means the image's own size.
        fixed: whether the graph accepts only ``size``.
        quantization: quantization of the weights and activations.
        step: training step of the weights.
        multiple: the graph repeats the last row and column until height and width are multiples of this, and crops the
            predictions; for information only.
        outputs: what the channels of every output mean. (The last two since format 2.)
    """

    name: str
    protocol: str
    tasks: dict[str, Task.Config]
    labels: dict[str, LabelInfo]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: tuple[int, int] | None
    fixed: bool
    quantization: str = ""
    step: int = 0
    multiple: int = 1
    outputs: dict[str, str] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        protocol = f" ({self.protocol})" if self.protocol else ""
        return f"{self.name}{protocol}" + (f", {self.quantization} INT8" if self.quantization else "")

    def build_tasks(self) -> dict[str, Task]:
        """Build the tasks, for decoding and painting."""
        return {name: config.build(labels=self.labels[name]) for name, config in self.tasks.items()}


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    format: int
    version: str
    model: dict[str, Any]


class _Format(msgspec.Struct):
    format: int
    version: str = "of unknown number"


def to_json(metadata: ExportMetadata) -> str:
    """The text that goes into the file."""
    return json.dumps({"format": FORMAT, "version": __version__, "model": encode(metadata)})


def from_json(text: str | bytes, where: object) -> ExportMetadata:
    """The inverse of :func:`to_json`. Nothing but names of known tasks and plain values is accepted.

    Raises:
        InputError: it is not valid metadata, or of a newer version.
    """
    if len(text) > LARGEST:
        raise _refused(where, f"metadata of {len(text)} characters")
    try:
        said = msgspec.json.decode(text, type=_Format)
        if said.format > FORMAT:
            raise InputError(where, f"format {said.format}, written by polyptych {said.version[:40]!r}",
                             f"format {FORMAT} or older", "update polyptych, or export the run again")
        envelope = msgspec.json.decode(text, type=_Envelope)
        return _checked(envelope.model, where)
    except InputError:
        raise
    except Exception as error:  # whatever a Config raises for absurd values
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise _refused(where, f"metadata that cannot be read ({reason})") from None


def _checked(model: dict[str, Any], where: object) -> ExportMetadata:
    tasks = model.get("tasks")
    if not isinstance(tasks, dict) or not tasks:
        raise _refused(where, "metadata without tasks")
    for name, config in tasks.items():
        if not _NAME.fullmatch(name):  # names become part of file names
            raise _refused(where, f"a task called {name[:80]!r}")
        kind = config.get("name") if isinstance(config, dict) else None
        if kind not in CATALOG.names():  # a name becomes an import, so it must be one of the known
            raise InputError(where, f"a task of kind {str(kind)[:80]!r}", nearest(str(kind)[:80], CATALOG.names()),
                             "export the run again")
    found: ExportMetadata = decode(ExportMetadata, model, f"{where}: metadata")
    if list(found.labels) != list(found.tasks):
        raise _refused(where, "metadata whose labels are of other tasks")
    if found.fixed and found.size is None:
        raise _refused(where, "metadata of a fixed size that it does not state")
    if found.size is not None and not all(1 <= side <= LARGEST_SIDE for side in found.size):
        raise _refused(where, f"a size of {found.size}")
    for info in found.labels.values():
        if any(not 0 <= value <= 255 for color in info.colors for value in color):
            raise _refused(where, "a color outside 0 to 255")
    found.build_tasks()
    return found


def _refused(where: object, got: str) -> InputError:
    return InputError(where, got, "a model that `polyptych export` wrote", "export the run again")
