"""Exported files as models that predict. No network is built: onnxruntime or torch run the graph in the file."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from polyptych.errors import InputError, first_line
from polyptych.export.archive import clean
from polyptych.export.graph import INPUT, quiet, write_onnx
from polyptych.export.metadata import KEY, ExportMetadata, from_json, to_json
from polyptych.tasks._base import Task


class FileModel(ABC):
    """Base of all kinds of exported files: writing, opening and running them.

    Attributes:
        metadata: metadata of the file.
        tasks, size, fixed, caption: see :class:`polyptych.prediction.model.Model`.
    """

    def __init__(self, path: Path, metadata: ExportMetadata):
        self.path, self.metadata = path, metadata
        self.tasks: dict[str, Task] = metadata.build_tasks()
        self.size, self.fixed, self.caption = metadata.size, metadata.fixed, metadata.caption

    def raw(self, images: UInt8[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """See :class:`polyptych.prediction.model.Model`.

        Raises:
            InputError: images of another size than a fixed one, or predictions that are not those of the tasks.
        """
        if self.fixed and tuple(images.shape[-2:]) != self.size:
            height, width = images.shape[-2:]
            assert self.size is not None
            raise InputError(self.path, f"images of {height} x {width}", f"{self.size[0]} x {self.size[1]}",
                             "resize them, or export the run with --dynamic")
        predictions = self._run(images.contiguous())
        for name, task in self.tasks.items():
            shape = tuple(predictions[name].shape)
            whole = len(shape) == 4 and shape[:2] == (len(images), task.channels)
            if not whole or (task.dense and shape[2:] != tuple(images.shape[2:])):
                raise InputError(self.path, f"a prediction of shape {shape} for task '{name}'",
                                 f"{(len(images), task.channels, *images.shape[2:])}", "export the run again")
        return {name: predictions[name] for name in self.tasks}

    @staticmethod
    @abstractmethod
    def write(program: torch.export.ExportedProgram, metadata: ExportMetadata, path: Path) -> None:
        """Save a captured network and its metadata."""

    @classmethod
    @abstractmethod
    def open(cls, path: Path) -> FileModel:
        """
        Raises:
            InputError: the file cannot be trusted or read.
        """

    @abstractmethod
    def _run(self, images: Tensor) -> dict[str, Tensor]:
        """Raw predictions of the file."""


class OnnxModel(FileModel):
    """An .onnx file under onnxruntime."""

    def __init__(self, path: Path, metadata: ExportMetadata, session: Any):
        super().__init__(path, metadata)
        self.session = session

    @staticmethod
    def write(program: torch.export.ExportedProgram, metadata: ExportMetadata, path: Path) -> None:
        write_onnx(program, tuple(metadata.tasks), path, {KEY: to_json(metadata)})

    @classmethod
    def open(cls, path: Path) -> OnnxModel:
        """
        Raises:
            InputError: the file is not a whole model, has no metadata of ours, or is from a newer version.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4
        try:
            # From memory: this refuses a file that refers to other files for its weights.
            session = onnxruntime.InferenceSession(_read(path), options, providers=["CPUExecutionProvider"])
        except InputError:
            raise
        except Exception as error:  # onnxruntime has many exception classes without a common base
            raise InputError(path, f"a file that onnxruntime cannot open ({first_line(error)})", "a whole ONNX model",
                             "export the run again") from None
        text = session.get_modelmeta().custom_metadata_map.get(KEY)
        if text is None:
            raise InputError(path, "an ONNX model without metadata of polyptych",
                             "a model that `polyptych export` wrote", "export a run")
        model = cls(path, from_json(text, path), session)
        _check_names(path, [item.name for item in session.get_outputs()], model.tasks)
        if [(item.name, item.type) for item in session.get_inputs()] != [(INPUT, "tensor(uint8)")]:
            raise InputError(path, "a model with other inputs", f"a single uint8 input named {INPUT}",
                             "export the run again")
        return model

    def _run(self, images: Tensor) -> dict[str, Tensor]:
        try:
            found = self.session.run(list(self.tasks), {INPUT: images.cpu().numpy()})
        except Exception as error:
            raise _failed(self.path, images, error) from None
        return {name: torch.from_numpy(array) for name, array in zip(self.tasks, found, strict=True)}


class ExportedModel(FileModel):
    """A .pt2 file under torch."""

    def __init__(self, path: Path, metadata: ExportMetadata, module: torch.nn.Module):
        super().__init__(path, metadata)
        self.module = module

    @staticmethod
    def write(program: torch.export.ExportedProgram, metadata: ExportMetadata, path: Path) -> None:
        content = io.BytesIO()  # torch's own writer does not report a full disk
        with quiet():
            torch.export.save(program, content, extra_files={KEY: to_json(metadata)})
        path.write_bytes(content.getbuffer())

    @classmethod
    def open(cls, path: Path) -> ExportedModel:
        """
        Raises:
            InputError: the file is not a whole archive, holds more than a network (nothing of it is then executed),
                has no metadata of ours, or is from a newer version.
        """
        _read(path, 4)
        text, data = clean(path)
        metadata = from_json(text, path)
        try:
            with quiet():
                module = torch.export.load(io.BytesIO(data)).module(check_guards=False)
        except Exception as error:
            raise InputError(path, f"a program that torch {torch.__version__} cannot read ({first_line(error)})",
                             "a .pt2 that `polyptych export` wrote", "export the run again") from None
        return cls(path, metadata, module)

    @torch.inference_mode()
    def _run(self, images: Tensor) -> dict[str, Tensor]:
        try:
            found = self.module(images.cpu())
        except Exception as error:
            raise _failed(self.path, images, error) from None
        _check_names(self.path, list(self.tasks)[:len(found)] + ["more"] * (len(found) - len(self.tasks)), self.tasks)
        return dict(zip(self.tasks, found, strict=True))


def _read(path: Path, size: int = -1) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError as error:
        raise InputError(path, f"'{error.strerror}'", "a file that can be read", "check the path") from None


def _check_names(path: Path, names: list[str], tasks: dict[str, Task]) -> None:
    if sorted(names) != sorted(tasks):
        raise InputError(path, f"outputs {', '.join(names)[:200]}", f"those of its tasks: {', '.join(tasks)}",
                         "export the run again")


def _failed(path: Path, images: Tensor, error: Exception) -> InputError:
    return InputError(path, f"images of shape {tuple(images.shape)}, on which it fails ({first_line(error)})",
                      "images that the graph accepts", "use another size, or export the run again")
