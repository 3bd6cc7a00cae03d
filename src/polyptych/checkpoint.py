"""Checkpoints: one safetensors file each, written atomically, holding everything that an exact resume needs."""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

from polyptych.errors import InputError


@dataclass
class TrainingState:
    """Everything that changes while training."""

    network: nn.Module
    balancer: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: nn.Module | None = None  # moving average of the network's weights
    step: int = 0  # optimizer steps done
    progress: dict[str, Any] = field(default_factory=dict)  # plain values: best skill, seconds, ...


def save_state(path: Path, state: TrainingState) -> None:
    """Write a checkpoint from which training resumes bit for bit on the CPU.

    Raises:
        InputError: it cannot be written; the checkpoint that was there before is untouched.
    """
    tensors = {f"network.{k}": v for k, v in state.network.state_dict().items()}
    tensors |= {f"balancer.{k}": v for k, v in state.balancer.state_dict().items()}
    if state.average is not None:
        tensors |= {f"average.{k}": v for k, v in state.average.state_dict().items()}
    optimizer = state.optimizer.state_dict()["state"]
    scalars: dict[str, Any] = {}
    for index, entries in optimizer.items():
        for key, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{key}"] = value
            else:
                scalars[f"{index}.{key}"] = value
    tensors |= _random_tensors()
    values = {"step": state.step, "progress": state.progress, "optimizer": scalars,
              "scaler": state.scaler.state_dict(), "python_random": random.getstate()}
    write_tensors(path, tensors, values)


def load_state(path: Path, state: TrainingState) -> None:
    """Put a checkpoint into a freshly built state, random number generators included.

    Raises:
        InputError: the file is missing, truncated, not a checkpoint, or of another network.
    """
    tensors, values = read_tensors(path)
    fill(state.network, tensors, "network.", path)
    fill(state.balancer, tensors, "balancer.", path)
    if state.average is not None:
        fill(state.average, tensors, "average.", path)
    try:
        entries: dict[int, dict[str, Any]] = {}
        for name, value in [*_under(tensors, "optimizer.").items(), *values["optimizer"].items()]:
            index, _, key = name.partition(".")
            entries.setdefault(int(index), {})[key] = value
        state.optimizer.load_state_dict({**state.optimizer.state_dict(), "state": entries})
        state.scaler.load_state_dict(values["scaler"])
        state.step, state.progress = int(values["step"]), dict(values["progress"])
        version, internal, gauss = values["python_random"]
        random.setstate((version, tuple(internal), gauss))
        _restore_random(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(path, f"a checkpoint that does not fit this run ({error})",
                         "one written by the same run", "resume from another checkpoint") from error


def load_weights(path: Path, network: nn.Module) -> int:
    """Put the weights of a checkpoint into a network, the moving average where it has one; returns their step."""
    tensors, values = read_tensors(path)
    has_average = any(name.startswith("average.") for name in tensors)
    fill(network, tensors, "average." if has_average else "network.", path)
    return int(values.get("step", 0))


def write_tensors(path: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """One safetensors file with JSON ``values`` in its header; complete or not there at all."""
    temporary = path.with_name(path.name + ".partial")
    copies = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    data = save(copies, {"polyptych": json.dumps(values)})
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(path, f"'{error.strerror}' while saving",
                         f"{len(data) / 2**20:.0f} MiB of free, writable disk",
                         "free some space; the previous checkpoint is untouched, resume from it") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and values of a file written by :func:`write_tensors`. Nothing in it is executed."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            values = json.loads((file.metadata() or {})["polyptych"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise InputError(path, "no such file", "a checkpoint", "train first, or choose another run") from None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InputError(path, f"a file that is not a whole checkpoint ({error})",
                         "a safetensors file written by polyptych", "choose another checkpoint of the run") from None
    return tensors, values


def fill(module: nn.Module, tensors: dict[str, Tensor], prefix: str, path: Path) -> None:
    """Load a module's state from the tensors under a prefix; they must fit exactly."""
    found, expected = _under(tensors, prefix), module.state_dict()
    for name, value in expected.items():
        shape = tuple(found[name].shape) if name in found else None
        if shape != tuple(value.shape):
            came = f"no tensor {prefix}{name}" if shape is None else f"{prefix}{name} of shape {shape}"
            raise InputError(path, came, f"shape {tuple(value.shape)}", "use a checkpoint of the same network")
    if extra := found.keys() - expected.keys():
        raise InputError(path, f"{len(extra)} unknown tensors, for instance {prefix}{min(extra)}",
                         "the tensors of this network", "use a checkpoint of the same network")
    module.load_state_dict(found)


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _random_tensors() -> dict[str, Tensor]:
    state: Any = np.random.get_state(legacy=True)  # a tuple; numpy's stubs also allow for a dict
    _, keys, position, has_gauss, cached = state
    tensors = {"random.torch": torch.get_rng_state(), "random.numpy": torch.from_numpy(keys.astype(np.int64)),
               "random.numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64)}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return tensors


def _restore_random(tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors["random.torch"])
    position, has_gauss, cached = tensors["random.numpy_rest"].tolist()
    keys = tensors["random.numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(position), int(has_gauss), cached))
    if torch.cuda.is_available() and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])
