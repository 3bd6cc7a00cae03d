"""Checkpoints of published networks with numbers of a rule in place of weights: `../shared/data/published`.

Every number follows from a seed and the name of its tensor: the generator of a tensor is seeded by both (the name by
its CRC-32). Variances and scales lie in [0.5, 1.5], means and biases are normal with deviation 0.1, weights normal with
deviation 1 / sqrt(fan-in), whole numbers 0.
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(os.environ.get("POLYPTYCH_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "published"


def record(name: str) -> dict[str, Any]:
    """A fixture by name; skips where it is not there."""
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        pytest.skip(f"no {path}: numbers of the published programs are not part of the project")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def weights(layout: dict[str, list[Any]], seed: int) -> dict[str, Tensor]:
    """The state dict that the program's outputs were recorded with, in double precision."""
    return {name: torch.from_numpy(_numbers(name, tuple(shape), kind, seed)) for name, (shape, kind) in layout.items()}


def _numbers(name: str, shape: tuple[int, ...], kind: str, seed: int) -> np.ndarray:
    random, end = _generator(seed, name), name.rpartition(".")[2]
    if "int" in kind or "bool" in kind:
        return np.zeros(shape, np.int64)
    if end == "running_var" or (end == "weight" and len(shape) == 1):
        return np.asarray(random.uniform(0.5, 1.5, shape))
    deviation = 0.1 if end == "running_mean" or len(shape) < 2 else max(1, int(np.prod(shape[1:]))) ** -0.5
    return np.asarray(random.standard_normal(shape) * deviation)


def small_hrnet(repeated: int = 1) -> dict[str, dict[str, Any] | int]:
    """That of atrc_small for timm's table of HRNets: one bottleneck of 8 channels, then a module of one block a branch,
    or so many modules of so many blocks."""
    def stage(number: int, kind: str, channels: tuple[int, ...]) -> dict[str, Any]:
        return {"num_modules": 1 if number < 3 else repeated, "num_branches": number, "block_type": kind,
                "num_blocks": (repeated,) * number, "num_channels": channels, "fuse_method": "SUM"}

    return {"stem_width": 64, "stage1": stage(1, "BOTTLENECK", (8,)),
            **{f"stage{n}": stage(n, "BASIC", (8, 12, 16, 28)[:n]) for n in (2, 3, 4)}}


def images(found: dict[str, Any]) -> Tensor:
    return torch.from_numpy(_generator(found["seed"], "image").random(found["input"]["shape"]))


def distance(prediction: Tensor, found: dict[str, Any], name: str) -> float:
    """The largest difference from the recorded values of an output, relative to the largest of them."""
    expected = found["expect"][name]
    assert list(prediction.shape) == expected["shape"], name
    count = min(256, prediction.numel())
    places = np.sort(_generator(found["seed"], f"positions/{name}").choice(prediction.numel(), count, replace=False))
    recorded = torch.tensor(expected["sample"], dtype=torch.float64)
    difference = (prediction.detach().reshape(-1)[torch.from_numpy(places)] - recorded).abs().max()
    return float(difference / recorded.abs().max())


def saved(path: Path, state: dict[str, Tensor], found: dict[str, Any]) -> Path:
    """A file as the authors' program saves it: the network at its place in a container, a program's things beside."""
    content: Any = state
    for key in reversed(found["container"]["state_dict_at"]):
        content = {key: content, "epoch": 3, "optimizer": {"state": {}, "param_groups": []},
                   "best_result": np.float64(1)}
    torch.save(content, path)
    return path
