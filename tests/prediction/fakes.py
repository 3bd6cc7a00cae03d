"""Models whose predictions follow from the pixels in a known way, for every kind of task."""

from __future__ import annotations

import torch
from torch import Tensor

from polyptych.tasks._base import CATALOG, Task
from polyptych.types import LabelInfo

LABELS = LabelInfo(classes=("wall", "floor", "left hand", "right hand", "door"), mirror=((2, 3),))


def tasks(*names: str) -> dict[str, Task]:
    return {name: CATALOG.load(name).Config().build(labels=LABELS) for name in names or CATALOG.names()}


class Model:
    """Predicts a fixed random function of every pixel's color: it sees no neighbor, no place and no size."""

    size: tuple[int, int] | None = None
    fixed = False
    caption = "a model of tests"

    def __init__(self, *names: str, seed: int = 0):
        self.tasks = tasks(*names)
        generator = torch.Generator().manual_seed(seed)
        self.weights = {name: torch.randn(task.channels, 3, generator=generator) / 2
                        for name, task in self.tasks.items()}
        self.seen: list[tuple[int, ...]] = []

    def raw(self, images: Tensor) -> dict[str, Tensor]:
        self.seen.append(tuple(images.shape))
        assert images.dtype == torch.uint8
        return {name: self.predict(name, images.float() / 255) for name in self.tasks}

    def predict(self, name: str, unit: Tensor) -> Tensor:
        return 0.5 + torch.einsum("ck,bkhw->bchw", self.weights[name], unit)


class Symmetric(Model):
    """Sees neighbors and places, but treats left and right exactly alike: f(mirror(x)) = mirror(f(x))."""

    def predict(self, name: str, unit: Tensor) -> Tensor:
        task = self.tasks[name]
        return (self.lopsided(name, unit) + task.mirrored(self.lopsided(name, unit.flip(-1)))) / 2

    def lopsided(self, name: str, unit: Tensor) -> Tensor:
        column = torch.linspace(0, 1, unit.shape[-1])
        return super().predict(name, unit + 0.5 * unit.roll(1, -1)) * (1 + column)


class Zooming(Model):
    """Takes an image of twice the width for one seen from half the distance, as a network does that knows how large
    things are; for images of one color, which stay the same in any size."""

    usual = 40

    def predict(self, name: str, unit: Tensor) -> Tensor:
        return self.tasks[name].zoomed(super().predict(name, unit), unit.shape[-1] / self.usual)
