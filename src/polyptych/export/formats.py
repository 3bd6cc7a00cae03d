"""The kinds of file that ``polyptych export`` writes.

A new one is a class in :mod:`polyptych.export.runtime` and a row here. The command line, the messages and
:func:`polyptych.prediction.model.open_model` read this table, so it names the classes instead of importing them: help
must not wait for PyTorch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from polyptych.export.runtime import FileModel


@dataclass(frozen=True)
class FileFormat:
    """One kind of file.

    Attributes:
        ending: extension of its files.
        summary: help text.
        model: name of the class in :mod:`polyptych.export.runtime` that writes, opens and runs it.
        writing, reading: packages needed for this in addition to PyTorch.
    """

    ending: str
    summary: str
    model: str
    writing: tuple[str, ...] = ()
    reading: tuple[str, ...] = ()

    def load(self) -> type[FileModel]:
        from polyptych.export import runtime

        kind: type[FileModel] = getattr(runtime, self.model)
        return kind


FORMATS = {
    "onnx": FileFormat(".onnx", "for ONNX Runtime and others", "OnnxModel",
                       ("onnx", "onnxscript", "onnxruntime"), ("onnxruntime",)),
    "torch": FileFormat(".pt2", "a torch.export program", "ExportedModel"),
}
ENDINGS = ", ".join(kind.ending for kind in FORMATS.values())

if TYPE_CHECKING:
    FormatName = str
else:
    FormatName: Any = Annotated[Literal[tuple(FORMATS)], tyro.conf.arg(
        help="Format: " + "; ".join(f"{name}, {kind.summary} ({kind.ending})" for name, kind in FORMATS.items()) + ".")]


def not_installed(packages: Iterable[str]) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]
