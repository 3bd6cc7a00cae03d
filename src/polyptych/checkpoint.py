"""Checkpoints: one safetensors file each, written atomically, holding everything that an exact resume needs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from polyptych import devices, distributed
from polyptych.data.files import require_plain
from polyptych.errors import InputError
from polyptych.record import whole_file

LARGEST_FLOAT32 = 3.4e38


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

    @property
    def device(self) -> torch.device:
        """The device whose random numbers the network draws."""
        return next((p.device for p in self.network.parameters()), torch.device("cpu"))


def save_state(path: Path, state: TrainingState) -> None:
    """Write a checkpoint from which training resumes bit for bit on the CPU. Every process must call this; the main one
    writes.

    Raises:
        InputError: it cannot be written; the previous checkpoint is untouched.
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
    tensors |= _random_tensors(state.device)
    values = {"step": state.step, "progress": state.progress, "optimizer": scalars,
              "scaler": state.scaler.state_dict(), "python_random": random.getstate(), "tensors": len(tensors)}
    tensors = distributed.whole(tensors)
    if distributed.is_main():
        write_tensors(path, tensors, values)


def load_state(path: Path, state: TrainingState) -> None:
    """Load a checkpoint into a freshly built state, random number generators included.

    Raises:
        InputError: the file is missing, truncated, not a checkpoint, or of another network.
    """
    tensors, values = read_tensors(path)
    fill(state.network, tensors, "network.", path)
    fill(state.balancer, tensors, "balancer.", path)
    if state.average is not None:
        fill(state.average, tensors, "average.", path)
    with fitting(path):
        if values.get("tensors", len(tensors)) != len(tensors):  # since 0.2; a lost one would restart at zero
            raise ValueError(f"{len(tensors)} of {values['tensors']} tensors")
        entries: dict[int, dict[str, Any]] = {}
        for name, value in [*_under(tensors, "optimizer.").items(), *values["optimizer"].items()]:
            index, _, key = name.partition(".")
            entries.setdefault(int(index), {})[key] = value
        _check_optimizer(state.optimizer, entries)
        _lay_out(state.optimizer, entries)
        state.optimizer.load_state_dict({**state.optimizer.state_dict(), "state": entries})
        if values["scaler"]:  # empty for weights of a search, which scales no loss: keep the fresh scale
            _check_scaler(values["scaler"])
            state.scaler.load_state_dict(values["scaler"])
        state.step, state.progress = _step(values), _checked_progress(values["progress"])
        _restore_random(tensors, values["python_random"], state.device)


@contextlib.contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Within this context, any error that a wrong value in a checkpoint causes becomes one line."""
    try:
        yield
    except (LookupError, TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        said = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(path, f"a checkpoint that does not fit this run ({said})",
                         "one written by the same run", "resume from another checkpoint") from error


def load_weights(path: Path, network: nn.Module) -> int:
    """Load the weights of a checkpoint into a network (the moving average if there is one); returns their step."""
    tensors, values = read_tensors(path)
    has_average = any(name.startswith("average.") for name in tensors)
    fill(network, tensors, "average." if has_average else "network.", path)
    with fitting(path):
        return _step({"step": 0} | values)


def write_tensors(path: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write one safetensors file with JSON ``values`` in its header, atomically, and without a second copy of tensors
    that are in the processor's memory already."""
    separate: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, value in tensors.items():
        value = value.detach().cpu().contiguous()
        # safetensors refuses tensors that share memory.
        place = value.untyped_storage().data_ptr()
        separate[name] = value.clone() if place in storages else value
        storages.add(place)
    with whole_file(path, sum(value.nbytes for value in separate.values())) as temporary:
        try:
            save_file(separate, temporary, {"polyptych": json.dumps(values)})
        except SafetensorError as error:
            if not (code := re.search(r"\(os error (\d+)\)", str(error))):
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def step_of(path: Path) -> int:
    """The step of a checkpoint, without reading its tensors."""
    with fitting(path):
        return _step(read_tensors(path, only_values=True)[1])


def read_tensors(path: Path, *, only_values: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and values of a file written by :func:`write_tensors`. Nothing in it is executed."""
    if path.exists():
        require_plain(path, "a checkpoint")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            values = json.loads((file.metadata() or {})["polyptych"])
            if not isinstance(values, dict):
                raise ValueError("its metadata is no object")
            names = () if only_values else file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except FileNotFoundError:
        raise InputError(path, "no such file", "a checkpoint", "train first, or choose another run") from None
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        raise InputError(path, f"a file that is not a whole checkpoint ({error})",
                         "a safetensors file written by polyptych", "choose another checkpoint of the run") from None
    return tensors, values


def fill(module: nn.Module, tensors: dict[str, Tensor], prefix: str, path: Path) -> None:
    """Load a module's state from the tensors under a prefix; they must fit exactly."""
    found, expected = renewed(module, _under(tensors, prefix)), module.state_dict()
    for name, value in expected.items():
        shape = tuple(found[name].shape) if name in found else None
        if shape != tuple(value.shape):
            came = f"no tensor {prefix}{name}" if shape is None else f"{prefix}{name} of shape {shape}"
            raise InputError(path, came, f"shape {tuple(value.shape)}", "use a checkpoint of the same network")
        kind = found[name].dtype
        if kind != value.dtype and not (kind.is_floating_point and value.dtype.is_floating_point):
            raise InputError(path, f"{prefix}{name} of type {kind}", str(value.dtype),
                             "use a checkpoint of the same network")
    if extra := found.keys() - expected.keys():
        raise InputError(path, f"{len(extra)} unknown tensors, for instance {prefix}{min(extra)}",
                         "the tensors of this network", "use a checkpoint of the same network")
    module.load_state_dict(found)


def renewed(module: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under their current names: a module may translate those of earlier versions (``name_of_today``)."""
    for place, part in module.named_modules():
        if (renew := getattr(part, "name_of_today", None)) is not None:
            inside = f"{place}." if place else ""
            tensors = {inside + renew(name.removeprefix(inside)) if name.startswith(inside) else name: value
                       for name, value in tensors.items()}
    return tensors


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _step(values: dict[str, Any]) -> int:
    """The step of a checkpoint. Text or a fraction is refused here: it would fail only in the middle of the
    training."""
    step = values["step"]
    if type(step) is not int or not 0 <= step < 2**53:
        raise ValueError(f"step {step!r}")
    return step


def _checked_progress(progress: Any) -> dict[str, Any]:
    """The plain values of the training loop, with their types checked."""
    if not isinstance(progress, dict):
        raise ValueError(f"progress {progress!r}")
    for name in ("seconds", "best_skill", "best_known"):
        if name in progress and (isinstance(progress[name], bool) or not isinstance(progress[name], int | float)):
            raise ValueError(f"{name} {progress[name]!r}")
    return dict(progress)


def _check_scaler(values: Any) -> None:
    """Refuse what torch would accept, only to fail (or scale by zero) at the next step."""
    factors = [values[name] for name in ("scale", "growth_factor", "backoff_factor")]
    steps = [values[name] for name in ("growth_interval", "_growth_tracker")]
    if not (all(type(x) is float and 0 < x < LARGEST_FLOAT32 for x in factors)
            and all(type(x) is int and 0 <= x < 2**31 for x in steps)):
        raise ValueError(f"loss scale {values!r}")


def _check_optimizer(optimizer: torch.optim.Optimizer, entries: dict[int, dict[str, Any]]) -> None:
    """Refuse a state that lacks tensors or has tensors of the wrong shape: torch would accept it and fail at the next
    step. To find out what belongs in a state, the same optimizer takes one step on a single number."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    probe = torch.nn.Parameter(torch.zeros(1))
    probe.grad = torch.zeros(1)
    make: Any = type(optimizer)
    example = make([probe])
    example.param_groups[0] |= {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
    example.step()
    expected = example.state[probe]
    for index, entry in entries.items():
        parameter = parameters[index] if 0 <= index < len(parameters) else None
        if parameter is None or entry.keys() != expected.keys():
            raise ValueError(f"optimizer state {index} with {', '.join(sorted(entry)) or 'nothing'}")
        for name, value in entry.items():
            usual = expected[name]
            shape = None if not isinstance(usual, Tensor) else usual.shape if not usual.ndim else parameter.shape
            right = type(value) is type(usual) if shape is None else (
                isinstance(value, Tensor) and value.shape == shape and value.is_floating_point())
            if not right:
                raise ValueError(f"optimizer state {index}.{name} that is not of its parameter's shape and kind")


def _lay_out(optimizer: torch.optim.Optimizer, entries: dict[int, dict[str, Any]]) -> None:
    """Give moments the memory layout of their parameters. A file holds them in contiguous order, and a fused update
    walks through both memories in parallel: with channels-last weights it would pair the wrong numbers."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, entry in entries.items():
        for name, value in entry.items():
            if isinstance(value, Tensor) and value.ndim:
                entry[name] = torch.empty_like(parameters[index], dtype=value.dtype, device=value.device,
                                               requires_grad=False).copy_(value)


def _random_tensors(device: torch.device) -> dict[str, Tensor]:
    state: Any = np.random.get_state(legacy=True)  # a tuple; numpy's stubs also allow for a dict
    _, keys, position, has_gauss, cached = state
    tensors = {"random.torch": torch.get_rng_state(), "random.numpy": torch.from_numpy(keys.astype(np.int64)),
               "random.numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64)}
    if device.type != "cpu":
        tensors[f"random.{device.type}"] = devices.random_state(device)
    return tensors


def _restore_random(tensors: dict[str, Tensor], python: Any, device: torch.device) -> None:
    for name, value in _random_tensors(device).items():
        if name in tensors and (tensors[name].shape != value.shape or tensors[name].dtype != value.dtype):
            raise ValueError(f"{name} of shape {tuple(tensors[name].shape)}")
    version, internal, gauss = python
    if not (gauss is None or isinstance(gauss, float)):
        raise ValueError(f"python_random {gauss!r}")
    random.setstate((version, tuple(internal), gauss))
    torch.set_rng_state(tensors["random.torch"])
    position, has_gauss, cached = tensors["random.numpy_rest"].tolist()
    keys = tensors["random.numpy"].numpy()
    # numpy does not check the position, and would read past the end of its table.
    if not (0 <= position <= len(keys) and 0 <= keys.min() <= keys.max() < 2**32):
        raise ValueError(f"random.numpy at {position:g}")
    np.random.set_state(("MT19937", keys.astype(np.uint32), int(position), int(has_gauss), cached))
    if device.type != "cpu" and f"random.{device.type}" in tensors:
        devices.set_random_state(device, tensors[f"random.{device.type}"])
