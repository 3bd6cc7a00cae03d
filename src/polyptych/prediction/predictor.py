"""Predict: an image of any size in, a scene out; on request with windows, the mirror image, and several scales."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyptych import devices
from polyptych.data.geometry import Geometry
from polyptych.errors import InputError, nearest
from polyptych.networks import Network
from polyptych.prediction.inputs import Pixels, as_pixels
from polyptych.prediction.model import Model, RunModel, open_model
from polyptych.prediction.scene import Scene
from polyptych.prediction.windows import Finish, raw_again, slide
from polyptych.ranges import LARGEST_SIDE
from polyptych.tasks._base import Task, resize

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How an image is fed to the network. By default the whole image, at the size that the network was trained at.

    Raises:
        InputError: a value is out of range.
    """

    size: Size | None = None
    """Height and width of the network input (default: the training size)."""
    native: bool = False
    """Run each image at its own size."""
    flip: bool = False
    """Average with the prediction for the mirrored image."""
    scales: tuple[float, ...] = (1.0,)
    """Average over these image scales. An enlarged object looks nearer; tasks compensate for that."""
    tile: Size | None = None
    """Height and width of a sliding window; without a size, the image keeps its own size."""
    overlap: float = 0.25
    """Minimum overlap of neighboring windows, as a fraction of the window; overlaps are blended smoothly."""
    batch: int = 1
    """Images (or windows) per pass of the network."""

    def __post_init__(self) -> None:
        for name in ("size", "tile"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, tuple | list) and len(value) == 2
                                          and all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in value)):
                words = " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
                raise InputError(f"--{name}", words, f"a height and width from 1 to {LARGEST_SIDE}",
                                 f"for instance --{name} 480 640")
        for name in ("native", "flip"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"--{name}", repr(getattr(self, name)), "yes or no (True or False)", "pass a bool")
        if self.native and self.size is not None:
            raise InputError("--native", f"--size {self.size[0]} {self.size[1]} as well", "one of the two",
                             "leave one out")
        if not (isinstance(self.scales, tuple | list) and self.scales
                and all(isinstance(scale, int | float) and 0 < scale < math.inf for scale in self.scales)):
            raise InputError("--scales", str(self.scales), "positive numbers, at least one", "for instance 0.75 1 1.25")
        if not 0 <= self.overlap <= 0.9:
            raise InputError("--overlap", str(self.overlap), "a share of the window from 0 to 0.9", "0.25 is usual")
        if self.batch < 1:
            raise InputError("--batch", str(self.batch), "1 or more", "raise it")

    @property
    def views(self) -> list[tuple[float, bool]]:
        """Scale and mirroring of every view of the image."""
        return [(scale, mirror) for scale in self.scales for mirror in ((False, True) if self.flip else (False,))]


class Predictor:
    """A model, and how images are fed to it.

    Attributes:
        seconds: time spent in predictions so far.

    Raises:
        InputError: the model accepts one size only and ``inference`` asks for others.
    """

    model: Model
    inference: Inference
    seconds: float

    def __init__(self, model: Model, inference: Inference | None = None):
        self.model, self.inference = model, inference or Inference()
        self.seconds = 0.0
        if model.fixed and model.size is not None:
            _check_fixed(model.size, self.inference)

    @property
    def tasks(self) -> dict[str, Task]:
        """The predicted tasks, in order."""
        return self.model.tasks

    @property
    def network(self) -> Network:
        """The network of a run, an ordinary module in evaluation mode, on the device where it predicts.

        Raises:
            InputError: this is an exported model, which has no module.
        """
        if isinstance(self.model, RunModel):
            return self.model.network
        raise InputError("network", f"{self.model.caption}, an exported model", "a run, whose network is a module",
                         "load the folder of the run that it was exported from")

    def predict(self, image: Path | str | Any) -> Scene:
        """The scene of one image.

        Args:
            image: a file, a PIL image, or a uint8 RGB array (h w 3).

        Raises:
            InputError: it is none of these, or cannot be read.
        """
        return next(self.predict_many([image]))

    def predict_many(self, images: Iterable[Path | str | Any]) -> Iterator[Scene]:
        """The scenes of many images, in order; at most a batch of them is in memory at any time. Consecutive images
        that have the same size for the network share a pass."""
        waiting: list[Pixels] = []
        for image in images:
            pixels = as_pixels(image)
            if waiting and self._working_size(pixels.size) != self._working_size(waiting[0].size):
                yield from self._scenes(waiting)
                waiting = []
            waiting.append(pixels)
            if len(waiting) == self.inference.batch:
                yield from self._scenes(waiting)
                waiting = []
        if waiting:
            yield from self._scenes(waiting)

    def _working_size(self, native: Size) -> Size:
        inference = self.inference
        if inference.native:
            return native
        return inference.size or (native if inference.tile else self.model.size or native)

    @torch.inference_mode()
    def _scenes(self, images: list[Pixels]) -> list[Scene]:
        start = time.perf_counter()
        tensors = [torch.from_numpy(image.array).permute(2, 0, 1) for image in images]
        inference = self.inference
        work, views = self._working_size(images[0].size), inference.views
        totals: list[dict[str, Tensor]] = [{} for _ in images]
        decoded: list[dict[str, Tensor]] = [{} for _ in images]
        if inference.tile and views == [(1.0, False)] and all(image.size == work for image in images):
            # Raw predictions of a large image would not fit into memory, so rows are decoded as they are completed.
            decoded = [self._slide(tensor, _decoded) for tensor in tensors]
            views = []
        for scale, mirror in views:
            size = _scaled(work, scale)
            batch = torch.stack([Geometry.resize(image.size, size).image(tensor)
                                 for image, tensor in zip(images, tensors, strict=True)])
            predictions = self._raw(batch.flip(-1) if mirror else batch)
            for name, task in self.tasks.items():
                # Removed from the dict to free memory: raw predictions of one task may take gigabytes for a large
                # image.
                of_all = predictions.pop(name)
                for index, (image, total) in enumerate(zip(images, totals, strict=True)):
                    own = _straightened(task, of_all[index:index + 1], scale, mirror)
                    own = resize(own, image.size) if task.dense else own
                    if len(views) == 1:
                        decoded[index][name] = task.decode(own)[0]
                        continue
                    own = task.to_mean(own if task.dense else own.mean((2, 3), keepdim=True)) / len(views)
                    total[name] = total[name] + own if name in total else own
        for total, found in zip(totals, decoded, strict=True):
            for name in list(total):
                found[name] = self.tasks[name].decode(self.tasks[name].from_mean(total.pop(name)))[0]
        decoded = [devices.fetched(found) for found in decoded]
        self.seconds += time.perf_counter() - start
        return [Scene(image.array, self.tasks, found, name=image.name)
                for image, found in zip(images, decoded, strict=True)]

    def _raw(self, images: Tensor) -> dict[str, Tensor]:
        if self.inference.tile is None:
            return self.model.raw(images)
        blended = [self._slide(image) for image in images]
        if len(blended) == 1:
            return blended[0]  # concatenation would copy, and windowed images are large
        return {name: torch.cat([each[name] for each in blended]) for name in self.tasks}

    def _slide(self, image: Tensor, finish: Finish = raw_again) -> dict[str, Tensor]:
        inference = self.inference
        assert inference.tile is not None
        # A window larger than the image would waste memory; the network pads images to what it needs.
        height, width = (min(*sides) for sides in zip(inference.tile, image.shape[-2:], strict=True))
        window = (inference.tile[0], inference.tile[1]) if self.model.fixed else (height, width)
        return slide(self.model.raw, self.tasks, image, window, inference.overlap, inference.batch, finish)


def load(path: Path | str, *, weights: str = "", device: str = "auto", **inference: Any) -> Predictor:
    """Open a run folder or an exported model, ready to predict.

    Args:
        weights: weights of a run: ``last`` or ``best``; empty means those that the run selected.
        device: ``auto``, ``cpu``, ``cuda``, ...
        inference: fields of :class:`Inference`, for instance ``flip=True`` or ``tile=(512, 512)``.

    Raises:
        InputError: the path does not exist, is no model, or cannot be read; or an option is unknown.
    """
    known = [field.name for field in dataclasses.fields(Inference)]
    for name in inference:
        if name not in known:
            raise InputError("load", f"an option '{name}'", nearest(name, known), "see polyptych.prediction.predictor")
    return Predictor(open_model(Path(path), weights, device), Inference(**inference))


def _decoded(task: Task, mean: Tensor) -> Tensor:
    return task.decode(task.from_mean(mean))[0].cpu()


def _straightened(task: Task, prediction: Tensor, scale: float, mirror: bool) -> Tensor:
    """The prediction for a view, transformed back to the image itself."""
    prediction = task.mirrored(prediction) if mirror else prediction
    return task.zoomed(prediction, 1 / scale) if scale != 1 else prediction


def _scaled(size: Size, scale: float) -> Size:
    if scale == 1:
        return size
    height, width = (max(1, round(side * scale)) for side in size)
    if max(height, width) > LARGEST_SIDE:
        raise InputError("--scales", f"{scale:g}, which makes {height} x {width} pixels",
                         f"at most {LARGEST_SIDE} a side", "lower it")
    return height, width


def _check_fixed(size: Size, inference: Inference) -> None:
    only = f"{size[0]} {size[1]}, the only size that this model accepts"
    if inference.tile is not None:
        if tuple(inference.tile) != tuple(size):
            raise InputError("--tile", f"{inference.tile[0]} {inference.tile[1]}", only,
                             "use that size, or another model")
        return
    asked = "--native" if inference.native else "--scales" if inference.scales != (1.0,) else ""
    if inference.size is not None and tuple(inference.size) != tuple(size):
        asked = "--size"
    if asked:
        raise InputError(asked, "another size for the network", only,
                         f"add --tile {size[0]} {size[1]}, or leave it out")
