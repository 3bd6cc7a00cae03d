"""Checkpoints in which anything was changed are refused in one line, or train on."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_checkpoint import make_state, steps

from polyptych.checkpoint import load_state, load_weights, read_tensors, save_state, write_tensors
from polyptych.errors import InputError

WRONG: list[Any] = ["x", "3", "a\nb", -1, 0.5, 10**30, float("nan"), float("inf"), True, None, [], {}, [1], [[1.0]],
                    {"a": 1}, {"a\nb": "c"}, ""]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "last.safetensors"
    state = make_state(1)
    steps(state, 2)
    state.progress |= {"seconds": 1.0, "best_skill": 0.5, "best_known": 1}
    save_state(path, state)
    return path


def survives(path: Path) -> bool:
    """Whether the file is taken, and then good for a step; everything else but an InputError passes through."""
    keep = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        state = make_state(2)
        load_state(path, state)
        steps(state, 1)
        state.scaler.scale(torch.ones(()))
        return True
    except InputError as error:
        assert str(error).isprintable() and len(str(error)) < 1200, str(error)
        return False
    finally:
        torch.set_rng_state(keep[0])
        np.random.set_state(keep[1])
        random.setstate(keep[2])


def places(value: Any, path: tuple = ()) -> list[tuple]:
    entries = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key, item in entries for place in places(item, (*path, key))]


def test_values(saved: Path, tmp_path: Path) -> None:
    tensors, values = read_tensors(saved)
    path, taken, network = tmp_path / "x.safetensors", set(), make_state(3).network
    for place in places(values):
        for wrong in [*WRONG, KeyError]:
            changed = json.loads(json.dumps(values))
            inside = changed
            for key in place[:-1]:
                inside = inside[key]
            if wrong is KeyError:
                del inside[place[-1]]
            else:
                inside[place[-1]] = wrong
            write_tensors(path, tensors, changed)
            if survives(path) and changed != values:
                taken.add(place[0])
            try:
                load_weights(path, network)
            except InputError as error:
                assert str(error).isprintable()
    # A random number may be another one, a clock and a skill too; without a scale a fresh one begins.
    assert taken <= {"python_random", "progress", "scaler", "tensors"}


def test_tensors(saved: Path, tmp_path: Path) -> None:
    tensors, values = read_tensors(saved)
    path = tmp_path / "x.safetensors"
    for name, value in tensors.items():
        for wrong in (None, torch.zeros(0), torch.zeros(10**5), torch.zeros((*value.shape, 2)), value.to(torch.cfloat),
                      torch.full(value.shape, -1), torch.full(value.shape, 10**12)):
            write_tensors(path, {k: v for k, v in (tensors | {name: wrong}).items() if v is not None}, values)
            # A number of batches may be any.
            assert survives(path) == (wrong is not None and wrong.dtype == value.dtype and wrong.shape == value.shape
                                      and name.endswith("num_batches_tracked")), (name, wrong)
    for prefix in ("optimizer.", "random.", "network.", "average.", "balancer.", "optimizer.1.", "optimizer.1.exp_avg"):
        rest = {k: v for k, v in tensors.items() if not k.startswith(prefix)}
        write_tensors(path, rest, values)
        assert not survives(path), prefix
    for name in ("optimizer.99.step", "optimizer.x.step", "optimizer.0.more", "optimizer.-1.step", "network.a\nb"):
        write_tensors(path, tensors | {name: torch.zeros(())}, values | {"tensors": len(tensors) + 1})
        assert not survives(path), name


def test_bytes(saved: Path, tmp_path: Path) -> None:
    whole, draw, path = saved.read_bytes(), random.Random(0), tmp_path / "x.safetensors"
    header = 8 + int.from_bytes(whole[:8], "little")
    for number in range(400):
        data = bytearray(whole)
        for _ in range(draw.choice((1, 1, 1, 5))):
            data[draw.randrange(header if number % 2 else len(data))] = draw.randrange(256)
        path.write_bytes(bytes(data[:draw.randrange(len(data))] if number % 20 == 0 else data))
        survives(path)
