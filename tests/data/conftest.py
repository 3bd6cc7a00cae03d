"""A small dataset in memory with every kind of label, and its tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch

from polyptych.datasets._base import Dataset
from polyptych.errors import InputError
from polyptych.tasks._base import CATALOG, Task
from polyptych.types import LabelInfo, Sample, SampleInfo

TASKS = ("semseg", "depth", "normals", "boundaries", "keypoints")


class Noise(Dataset):
    """Random labels; sample i is the same whenever it is read. Sample 0 has no depth."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Dataset.Config):
        count: int = 11
        size: tuple[int, int] = (18, 23)
        broken: tuple[int, ...] = ()
        growing: bool = False
        """Every sample is one pixel larger than the one before."""

    labels = {  # noqa: RUF012
        "semseg": LabelInfo(classes=tuple("abcde")), "depth": LabelInfo(unit="m"), "normals": LabelInfo(),
        "boundaries": LabelInfo(), "keypoints": LabelInfo(classes=("left", "right", "nose"), mirror=((0, 1),)),
    }
    protocol = "noise"

    def __len__(self) -> int:
        return self.config.count

    def read(self, index: int) -> Sample:
        if index in self.config.broken:
            raise InputError(f"noise/{index}.jpg", "a truncated file", "a picture", "copy it again")
        g = torch.Generator().manual_seed(index)
        grow = index if self.config.growing else 0
        size = (self.config.size[0] + grow, self.config.size[1] + grow)
        target = {
            "semseg": torch.randint(0, 5, size, generator=g), "depth": torch.rand(size, generator=g) * 9 + 0.5,
            "normals": torch.nn.functional.normalize(torch.randn(3, *size, generator=g), dim=0),
            "boundaries": (torch.rand(size, generator=g) > 0.8).float(),
            "keypoints": self._keypoints(index % 3, size, g),
        }
        valid = {name: torch.rand(size, generator=g) > 0.3 for name in target}
        have = [name for name in self.tasks if not (name == "depth" and index == 0)]
        image = torch.randint(0, 256, (3, *size), generator=g, dtype=torch.uint8)
        return Sample(image, {name: target[name] for name in have}, {name: valid[name] for name in have},
                      SampleInfo(str(index), size, size))

    def _keypoints(self, persons: int, size: tuple[int, int], g: torch.Generator) -> torch.Tensor:
        y = torch.randint(0, size[0], (persons, 3), generator=g)
        x = torch.randint(0, size[1], (persons, 3), generator=g)
        return torch.stack([x, y, torch.ones_like(x)], -1).float()


def tasks_of(dataset: Dataset) -> Mapping[str, Task]:
    return {name: CATALOG.load(name).Config().build(labels=dataset.labels[name]) for name in dataset.tasks}


@pytest.fixture
def noise():
    """Builds the dataset and its tasks: ``dataset, tasks = noise(count=5)``."""

    def build(tasks: tuple[str, ...] = TASKS, **options):
        dataset = Noise.Config(**options).build(split="train", tasks=tasks)
        return dataset, tasks_of(dataset)

    return build


@pytest.fixture
def same():
    """Asserts that two batches or samples hold exactly the same."""

    def compare(a, b) -> None:
        assert a.info == b.info
        assert torch.equal(a.image, b.image)
        assert a.target.keys() == b.target.keys()
        for name in a.target:
            assert torch.equal(a.target[name], b.target[name]), name
            assert torch.equal(a.valid[name], b.valid[name]), name

    return compare
