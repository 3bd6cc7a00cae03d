"""Starting from trained networks: every task's backbone and head from the run that trained it.

The published cross-stitch networks and NDDR-CNNs begin this way (Misra et al., CVPR 2016, arXiv 1604.03539; Gao et al.,
CVPR 2019, arXiv 1801.08297): their units, close to the identity at first, connect networks that already work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from polyptych.backbones._base import Backbone
from polyptych.checkpoint import fill
from polyptych.errors import InputError
from polyptych.networks import Network
from polyptych.prediction import load_network
from polyptych.tasks._base import Task


@dataclass(frozen=True)
class Trained:
    """The parts of a trained run that belong to one task."""

    folder: Path
    task: Task
    backbone: Backbone
    head: nn.Module | None
    mean: torch.Tensor
    std: torch.Tensor


def begin(network: Network, tasks: Mapping[str, Task], folders: Sequence[Path]) -> str:
    """Copy weights and batch statistics of trained runs into a fresh network: those that each run was tested with (its
    ``select``).

    Backbones are copied for every task; heads too, if both decoders have one per task (other decoders keep their fresh
    weights). The networks of the runs must also have one backbone per task, with no connections between them:
    ``--encoder single``, or ``shared`` with one task.

    A network whose tasks share parameters can only be copied whole, from a single run of the same architecture (an
    imported one, for instance).

    Args:
        folders: runs that together have each task exactly once. Tasks that this network does not have are left out.

    Returns:
        One line that says what was copied.

    Raises:
        InputError: a task is in none of the runs or in several, tasks share a backbone, weights do not fit, or the
            labels or the image normalization differ.
    """
    if len(folders) == 1 and any(network.encoder.own_backbone(name) is None for name in tasks) and (
            whole := _continued(network, tasks, folders[0])):
        return whole
    available: dict[str, Trained] = {}
    for folder in folders:
        for name, found in trained(folder).items():
            if name in available and name in tasks:
                raise InputError("--start", f"task '{name}' in {available[name].folder} and in {folder}",
                                 "every task once", "leave one of the runs out")
            available[name] = found
    if missing := [name for name in tasks if name not in available]:
        raise InputError("--start", f"no run with task '{missing[0]}' (found: {', '.join(available)})",
                         f"a run for each of {', '.join(tasks)}", "add one, or train it first")
    with_head = [name for name in tasks if _fill(network, name, tasks[name], available[name])]
    first = available[next(iter(tasks))]
    for name in tasks:
        if not (torch.equal(available[name].mean, first.mean) and torch.equal(available[name].std, first.std)):
            raise InputError("--start", f"different normalization of images in {first.folder} and "
                             f"{available[name].folder}", "the same mean and standard deviation",
                             "train both with --backbone.pretrained, or neither")
    network.mean.copy_(first.mean)
    network.std.copy_(first.std)
    heads = "their heads too" if len(with_head) == len(tasks) else "heads begin anew"
    return f"backbones of {', '.join(tasks)} begin as in {', '.join(map(str, folders))}; {heads}"


def trained(folder: Path) -> dict[str, Trained]:
    """The parts of a trained run, by task.

    Raises:
        InputError: the run cannot be read, or its tasks are connected.
    """
    run, tasks, network, _ = load_network(folder)
    backbones = {name: network.encoder.own_backbone(name) for name in tasks}
    inside = {id(p) for own in backbones.values() if own is not None for p in own.parameters()}
    if any(id(p) not in inside for p in network.encoder.parameters()):
        raise InputError(folder, f"a run with --encoder {run.encoder.name}, whose tasks are connected",
                         "backbones that were trained by themselves",
                         "train with --encoder single, or one task with --encoder shared")
    return {name: Trained(folder, tasks[name], backbone, network.decoder.own_head(name), network.mean, network.std)
            for name, backbone in backbones.items() if backbone is not None}


def _continued(network: Network, tasks: Mapping[str, Task], folder: Path) -> str:
    """Fill the whole network from a run with the same parts, tasks and shapes; if they differ, do nothing and return
    an empty text."""
    _, theirs, source, _ = load_network(folder)
    mine, found = network.state_dict(), source.state_dict()
    if (type(source.encoder) is not type(network.encoder) or type(source.decoder) is not type(network.decoder)
            or list(theirs) != list(tasks) or {k: v.shape for k, v in mine.items()} != {
                k: v.shape for k, v in found.items()}):
        return ""
    network.load_state_dict(found)
    return f"the whole network begins as in {folder}"


def _fill(network: Network, name: str, task: Task, source: Trained) -> bool:
    """Fill a task's backbone and head; False where there is no head."""
    backbone = network.encoder.own_backbone(name)
    if backbone is None:
        raise InputError("--start", f"--encoder {type(network.encoder).component_name()}, whose tasks share a backbone",
                         "an encoder with a backbone for every task (single, cross_stitch, nddr)",
                         "choose one of these, or leave --start out")
    fill(backbone, source.backbone.state_dict(), "", source.folder)
    head = network.decoder.own_head(name)
    if head is None or source.head is None:
        return False
    if type(source.task) is not type(task) or source.task.labels.classes != task.labels.classes:
        raise InputError(source.folder, f"other labels of task '{name}'", "the kind and classes of this run's dataset",
                         "train with this dataset, or choose another run")
    fill(head, source.head.state_dict(), "", source.folder)
    return True
