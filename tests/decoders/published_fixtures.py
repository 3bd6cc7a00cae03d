"""What the published networks give, from ``../shared/data/published``."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(os.environ.get("POLYPTYCH_TEST_DATA", Path(__file__).parents[2].parent / "shared/data")) / "published"


def rules() -> Any:
    """The module with the rule by which weights and images are made."""
    if not (FOLDER / "fill.py").is_file():
        pytest.skip(f"no published numbers in {FOLDER}")
    spec = importlib.util.spec_from_file_location("published_fill", FOLDER / "fill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Fixture:
    """One record: its ``state`` without the prefix of its keys, its image, normalized, and what is expected."""

    def __init__(self, name: str):
        self.fill = rules()
        self.record = self.fill.read(name)
        self.seed, self.config = self.record["seed"], self.record["config"]
        prefix = self.record["container"]["key_prefix"]
        derived = set(self.record.get("derived", ()))
        self.state = {key.removeprefix(prefix): torch.from_numpy(np.asarray(value))
                      for key, value in self.fill.fill(self.record["layout"], self.seed).items() if key not in derived}

    def image(self) -> Tensor:
        of = self.record["input"]
        mean, std = (torch.tensor(of["normalization"][k], dtype=torch.float64).view(3, 1, 1) for k in ("mean", "std"))
        return (torch.from_numpy(self.fill.image_of(of["shape"], self.seed)) - mean) / std

    def drawn(self, name: str, shape: list[int]) -> Tensor:
        return torch.from_numpy(self.fill.random_of(self.seed, name).standard_normal(shape))

    def agrees(self, outputs: dict[str, Tensor], expected: str = "expect") -> None:
        for name, value in outputs.items():
            record = self.record[expected][name]
            assert list(value.shape) == record["shape"]
            flat = value.detach().reshape(-1)
            where = torch.from_numpy(self.fill.positions(name, len(flat), self.seed))
            sample = torch.tensor(record["sample"], dtype=torch.float64)
            scale = sample.abs().max()
            assert (flat[where] - sample).abs().max() <= 1e-9 * scale, name
            assert abs(float(flat.mean()) - record["mean"]) <= 1e-9 * scale, name
