"""Models for prediction: a trained run, or a file exported from one. Both return raw predictions for a batch of
images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import UInt8
from torch import Tensor

from polyptych import devices, distributed
from polyptych.checkpoint import load_weights
from polyptych.data.files import require_plain
from polyptych.errors import InputError
from polyptych.export.formats import ENDINGS, FORMATS, not_installed
from polyptych.hub import local_folder
from polyptych.networks import Network
from polyptych.run import Run, buildable, read_run
from polyptych.tasks._base import Task

FORMS = f"a run folder, hf://OWNER/NAME, or an exported model ({ENDINGS})"


@runtime_checkable
class Model(Protocol):
    """A network as prediction needs it, wherever it comes from.

    Attributes:
        tasks: the tasks that it predicts, in order; they decode and paint the predictions.
        size: default height and width of the network's input; None is the image's own size.
        fixed: whether only ``size`` is accepted.
        caption: name and protocol, for the pages that show it.
    """

    tasks: dict[str, Task]
    size: tuple[int, int] | None
    fixed: bool
    caption: str

    def raw(self, images: UInt8[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """RGB images to raw predictions by task: float32 (b c h w) with the size of the images; tasks that are not
        dense may have another size."""


@dataclass
class RunModel:
    """The network of a run folder, in float32."""

    network: Network
    tasks: dict[str, Task]
    size: tuple[int, int] | None
    caption: str
    fixed: bool = False

    @staticmethod
    def open(folder: Path, weights: str = "", device: torch.device | None = None) -> RunModel:
        """See :func:`load_network`."""
        run, tasks, network, _ = load_network(folder, weights, device)
        protocol = read_run(folder)[1].protocol
        return RunModel(network, tasks, run.size, folder.resolve().name + (f" ({protocol})" if protocol else ""))

    @torch.inference_mode()
    def raw(self, images: UInt8[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """See :class:`Model`."""
        device = self.network.mean.device
        if devices.pins(device) and images.device.type == "cpu":
            images = images.pin_memory()
        final = self.network(images.to(device, non_blocking=True)).final
        return {name: final[name].float() for name in self.tasks}


def open_model(path: Path, weights: str = "", device: str = "auto") -> Model:
    """A run folder, a repository with a run (``hf://OWNER/NAME``), or a file that ``polyptych export`` wrote.

    Args:
        weights: weights of a run, as for :func:`load_network`.
        device: device of a run: ``auto``, ``cpu``, ``cuda``, ...

    Raises:
        InputError: the path does not exist, is no model, or cannot be read.
    """
    path = local_folder(path)
    if path.name == "run.json":
        path = path.parent
    if path.is_dir():
        return RunModel.open(path, weights, distributed.local_device(device, "--device"))
    if not path.exists():
        raise InputError(path, "no such file or folder", FORMS, "check the path")
    require_plain(path, FORMS)
    if weights:
        raise InputError("--weights", weights, "a run folder to choose weights from",
                         "leave it out: an exported model has one set of weights")
    for kind in FORMATS.values():
        if path.suffix.lower() == kind.ending:
            if missing := " ".join(not_installed(kind.reading)):
                raise InputError(path, f"a model that {missing} runs, which is not installed", missing,
                                 f"pip install {missing}")
            return kind.load().open(path)
    raise InputError(path, f"a file that ends in '{path.suffix.lower()}'", FORMS, "check the path")


def load_network(folder: Path, weights: str = "",
                 device: torch.device | None = None) -> tuple[Run, dict[str, Task], Network, int]:
    """A trained network from its run folder, without the data.

    Args:
        weights: ``last`` (the moving average if the run kept one) or ``best`` (by validation skill); empty means the
            weights that the run selected.

    Returns:
        The run, its tasks, the network in evaluation mode on ``device``, and the step its weights are from.
    """
    folder = local_folder(folder)
    run, facts = read_run(folder)
    with buildable(folder / "run.json"):
        tasks = run.build_tasks(facts.labels)
        network = run.build_network(tasks, pretrained=False)
    step = load_weights(folder / "checkpoints" / f"{weights or run.select}.safetensors", network)
    return run, tasks, network.to(device or "cpu").eval(), step
