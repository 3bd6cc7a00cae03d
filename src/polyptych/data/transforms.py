"""From samples to a batch: random moves and colors for training, a plain resize for evaluation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torchvision.transforms.v2.functional as F
from jaxtyping import UInt8
from torch import Tensor

from polyptych.data.geometry import Geometry
from polyptych.errors import InputError
from polyptych.tasks._base import Task
from polyptych.types import Batch, Sample


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of a training sample. The defaults only mirror.

    Published settings: MTAN's NYUv2 ``scales=(1, 1.2, 1.5)``; ASTMT and the survey ``scales=(0.75, 1.25),
    continuous=True, rotation=20``; ATRC and InvPT ``scales=(0.5, 2), continuous=True`` with
    ``brightness=0.125, contrast=0.5, saturation=0.5, hue=0.1, color_chance=0.5`` (facts: the papers' code;
    theirs shifts brightness by an offset, ours multiplies it).
    """

    mirror: bool = True
    """Mirror left to right with probability 1/2."""
    scales: tuple[float, ...] = (1.0,)
    """Zoom factors to choose from. 1.5 enlarges a window of 1/1.5 of the frame's height and width; below 1, the window
    exceeds the frame, and what lies outside is unlabeled."""
    continuous: bool = False
    """Draw the zoom uniformly between the smallest and the largest factor."""
    rotation: float = 0.0
    """Maximum rotation in either direction, in degrees."""
    brightness: float = 0.0
    """Maximum relative change of the brightness, up or down."""
    contrast: float = 0.0
    """Maximum relative change of the contrast, up or down."""
    saturation: float = 0.0
    """Maximum relative change of the saturation, up or down."""
    hue: float = 0.0
    """Maximum shift of the hue, as a fraction of the color circle (at most 0.5)."""
    color_chance: float = 1.0
    """Probability of each of the four color changes."""

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < s < math.inf for s in self.scales):
            raise InputError("augment.scales", str(self.scales), "at least one positive number",
                             "use (1,) for no zoom")
        for name, limit in (("rotation", 180.0), ("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0),
                            ("hue", 0.5), ("color_chance", 1.0)):
            if not 0 <= getattr(self, name) <= limit:
                raise InputError(f"augment.{name}", str(getattr(self, name)), f"a number from 0 to {limit:g}",
                                 "choose one in that range; 0 turns it off")

    def geometry(self, source: tuple[int, int], size: tuple[int, int],
                 generator: torch.Generator) -> Geometry:
        """Draw a move from a ``source`` frame to one of ``size`` (both h, w).

        The window has the aspect ratio of ``size``, so nothing is stretched; at zoom 1 it is the largest that
        fits into the source. Its position is uniform over all that lie inside (or, if larger, around) the
        frame.
        """
        # Always the same number of draws: a setting changes what it says and nothing else.
        zoom_draw, angle, top, left, mirror = torch.rand(5, generator=generator).tolist()
        if self.continuous:
            low, high = min(self.scales), max(self.scales)
            zoom = low + (high - low) * zoom_draw
        else:
            zoom = self.scales[int(zoom_draw * len(self.scales))]
        pixels = min(source[0] / size[0], source[1] / size[1]) / zoom  # of the source per pixel of the result
        height, width = (max(1, round(n * pixels)) for n in size)
        window = (_position(source[0] - height, top), _position(source[1] - width, left), height, width)
        return Geometry(source, size, window, angle=self.rotation * (2 * angle - 1),
                        mirror=self.mirror and mirror < 0.5, zoom=float(zoom))

    def colors(self, image: UInt8[Tensor, "3 h w"], generator: torch.Generator) -> UInt8[Tensor, "3 h w"]:
        """Randomly change brightness, contrast, saturation and hue, in this order."""
        chance, amount = torch.rand(2, 4, generator=generator).tolist()
        changes = ((F.adjust_brightness, self.brightness, 1.0), (F.adjust_contrast, self.contrast, 1.0),
                   (F.adjust_saturation, self.saturation, 1.0), (F.adjust_hue, self.hue, 0.0))
        for (change, most, neutral), c, a in zip(changes, chance, amount, strict=True):
            if most and c < self.color_chance:
                image = change(image, neutral + most * (2 * a - 1))
        return image


def augment(sample: Sample, tasks: Mapping[str, Task], size: tuple[int, int], generator: torch.Generator,
            how: Augment) -> Sample:
    """A training sample of ``size`` (h, w): image and all labels moved alike, colors of the image changed. A
    task without a label gets an empty one that is nowhere valid. The same generator state gives the same
    result."""
    geometry = how.geometry(_size(sample.image), size, generator)
    moved = move(sample, tasks, geometry)
    return replace(moved, image=how.colors(moved.image, generator))


def move(sample: Sample, tasks: Mapping[str, Task], geometry: Geometry) -> Sample:
    """Apply one geometric move to the image and to the labels of ``tasks``."""
    target, valid = {}, {}
    for name, task in tasks.items():
        if name in sample.target:
            target[name], valid[name] = task.move(sample.target[name], sample.valid[name], geometry)
        else:
            target[name], valid[name] = _no_label(task, geometry.size)
    return Sample(geometry.image(sample.image), target, valid, replace(sample.info, content=geometry.size))


def resize_image(sample: Sample, size: tuple[int, int] | None) -> Sample:
    """The sample with its image resized to ``size`` (the whole frame, no crop; None leaves it) and its labels
    at their native size: predictions are brought to the labels in evaluation, never the other way."""
    native = _size(sample.image)
    image = sample.image if size in (None, native) else Geometry.resize(native, size).image(sample.image)
    return replace(sample, image=image, info=replace(sample.info, content=_size(image)))


def collate(samples: Sequence[Sample], tasks: Mapping[str, Task]) -> Batch:
    """Stack samples. Where sizes differ, images are padded with zeros and labels with unlabeled pixels on
    the right and at the bottom up to the largest; ``info`` tells the size of each content. A missing label
    becomes an empty one that is nowhere valid."""
    label_sizes = [_label_size(sample) for sample in samples]
    size = _largest(label_sizes)
    target, valid = {}, {}
    for name, task in tasks.items():
        labels = [_padded_label(sample, name, task, own, size)
                  for sample, own in zip(samples, label_sizes, strict=True)]
        target[name] = task.collate([label for label, _ in labels])
        valid[name] = torch.stack([mask for _, mask in labels])
    images = _largest([_size(sample.image) for sample in samples])
    # The loop below writes straight into the batch: stacking padded copies would move every image twice.
    batch = samples[0].image.new_zeros((len(samples), 3, *images))
    for row, sample in zip(batch, samples, strict=True):
        height, width = _size(sample.image)
        row[:, :height, :width] = sample.image
    features = tuple(torch.stack(maps) for maps in zip(*(sample.features for sample in samples), strict=True))
    return Batch(batch, target, valid, [sample.info for sample in samples], features)


def _position(room: int, draw: float) -> int:
    """Uniform over 0..room; over room..0 where the window is larger than the frame."""
    offset = min(int(draw * (abs(room) + 1)), abs(room))
    return offset if room >= 0 else -offset


def _padded_label(sample: Sample, name: str, task: Task, own: tuple[int, int],
                  size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    if name not in sample.target:
        return _no_label(task, size)
    if own == size:
        return sample.target[name], sample.valid[name]
    # A window that exceeds the frame is padding, and every task knows how its labels move.
    return task.move(sample.target[name], sample.valid[name], Geometry(own, size, (0, 0, *size)))


def _no_label(task: Task, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    return task.empty(size), torch.zeros(size, dtype=torch.bool)


def _label_size(sample: Sample) -> tuple[int, int]:
    return next((_size(mask) for mask in sample.valid.values()), sample.info.native)


def _largest(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    return max(h for h, _ in sizes), max(w for _, w in sizes)


def _size(tensor: Tensor) -> tuple[int, int]:
    height, width = tensor.shape[-2:]
    return int(height), int(width)
