"""Base of all tasks. Everything specific to a task lives in its own file."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from polyptych import devices
from polyptych.component import Catalog, Component
from polyptych.data.geometry import Geometry
from polyptych.errors import InputError
from polyptych.metrics._base import FinalMetric, Metric
from polyptych.ops.resize import resize
from polyptych.tasks._pictures import Legend, Stored
from polyptych.types import LabelInfo, Likelihood, Loss

CATALOG: Catalog[Task] = Catalog("task", "polyptych.tasks")


class Task(Component, ABC):
    """One kind of dense prediction.

    Forms of the data, fixed by each task:

    - *prediction*: (b channels h w), raw network output (logits, unnormalized vectors, ...).
    - *target*: the label. Dense tasks have (h w) or (c h w) per sample; collation adds the batch dimension. Values
      under an invalid pixel are arbitrary but finite.
    - *decoded*: the form that metrics, pictures and the user's arrays use: class ids, meters, unit vectors,
      probabilities. For dense tasks the target has this form too.

    Attributes:
        channels: channels of the prediction.
        headline: the entry of the metric's result that represents the task in tables and in delta_mtl.
        higher_is_better: direction of every entry of the metric's result, by name.
        perfect: the headline's value for a perfect prediction.
        dense: every pixel has its own label. A task that is not dense has one label for the whole image; its
            predictions may keep any resolution, because its loss and decoding accept any.
        by_rows: large images are decoded a few rows at a time to save memory. Allowed if decoding treats each pixel
            alone, returns much less than it takes, and does not compute a sigmoid, whose last bit may depend on the
            length of its input.
        standard_weight: the usual loss weight in the field (ASTMT, survey and ATRC lines of work).
        likelihood: the distribution whose negative log-likelihood the loss is: ``gaussian`` for squared errors,
            ``laplace`` for absolute errors, ``categorical`` for cross-entropies. Uncertainty weighting needs it.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Component.Config):
        catalog = CATALOG

        def build(self, *, labels: LabelInfo) -> Task:
            return self.owner(self, labels=labels)

        @property
        def standard_weight(self) -> float:
            """The standard weight of the task, before it is built."""
            return self.owner.standard_weight

    channels: int
    headline: ClassVar[str]
    higher_is_better: ClassVar[dict[str, bool]]
    perfect: ClassVar[float]
    dense: ClassVar[bool] = True
    by_rows: ClassVar[bool] = False
    standard_weight: float = 1.0
    likelihood: Likelihood = "laplace"

    def __init__(self, config: Config, *, labels: LabelInfo):
        self.config, self.labels = config, labels

    # -- learning ------------------------------------------------------------------------------------------------

    def loss(self, prediction: Float[Tensor, "b c hp wp"], target: Tensor, valid: Bool[Tensor, "b h w"]) -> Loss:
        """Loss of a raw prediction of any resolution against a batch of targets, in float32.

        The prediction is resized to the labels (bilinear). ``count`` is the number of valid pixels.
        """
        prediction = resize(prediction.float(), (valid.shape[-2], valid.shape[-1]))
        return self.full_size_loss(prediction, target, valid)

    @abstractmethod
    def full_size_loss(self, prediction: Float[Tensor, "b c h w"], target: Tensor,
                       valid: Bool[Tensor, "b h w"]) -> Loss:
        """Like :meth:`loss`, for a float32 prediction at the resolution of the labels. A batch without valid pixels
        gives sum 0 with zero (finite) gradients."""

    def label_sums(self, target: Tensor, valid: Bool[Tensor, "b h w"]) -> Float[Tensor, " n"]:
        """Statistics of the labels that the loss needs over a whole step (such as the number of pixels of a class), as
        float64 sums that add up over micro-batches and processes. Most tasks need none."""
        return torch.zeros(0, dtype=torch.float64)

    def loss_in_step(self, prediction: Float[Tensor, "b c hp wp"], target: Tensor, valid: Bool[Tensor, "b h w"],
                     sums: Float[Tensor, " n"]) -> Loss:
        """Like :meth:`loss`, for a part of a step whose label statistics are ``sums``. The parts add up to the loss of
        the whole step, however it is split."""
        return self.loss(prediction, target, valid)

    # -- measuring and showing -----------------------------------------------------------------------------------

    @abstractmethod
    def decode(self, prediction: Float[Tensor, "b c h w"]) -> Tensor:
        """Raw prediction to decoded form."""

    @abstractmethod
    def metric(self) -> Metric:
        """A fresh accumulator; its ``update`` takes decoded predictions."""

    def final_metric(self) -> FinalMetric | None:
        """A further accumulator, for metrics too slow for validation during training; their names differ from those of
        :meth:`metric`."""
        return None

    @abstractmethod
    def trivial(self) -> Trivial:
        """A fresh accumulator of the best constant prediction, the baseline that every report prints."""

    @abstractmethod
    def paint(self, decoded: Tensor, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """A picture of one decoded prediction (no batch dimension); ``image`` is for tasks that draw on it."""

    def paint_target(self, target: Tensor, valid: Bool[Tensor, "h w"],
                     image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """A picture of one label; pixels without a label are gray. ``paint(target)`` must work, or override this."""
        picture = self.paint(target, image)
        picture[~valid.cpu().numpy()] = 128
        return picture

    # -- for the user --------------------------------------------------------------------------------------------

    @property
    def unit(self) -> str:
        """Unit of the numbers of :meth:`array`, in words."""
        return self.labels.unit

    @property
    def meaning(self) -> str:
        """What the channels of the raw prediction mean, for users of an exported file."""
        return f"{self.channels} raw values"

    def array(self, decoded: Tensor) -> np.ndarray:
        """One decoded prediction (no batch dimension) as the user gets it; channels last, if there are any."""
        return decoded.cpu().numpy()

    def at(self, decoded: Tensor, x: int, y: int) -> str:
        """One decoded prediction at column ``x`` and row ``y``, in words."""
        return f"{float(decoded[y, x]):.3g} {self.unit}".strip()

    def legend(self) -> Legend:
        """What the colors of :meth:`paint` mean; empty if the picture explains itself."""
        return Legend()

    def areas(self, decoded: Tensor, valid: Bool[Tensor, "h w"] | None = None) -> Int[np.ndarray, " k"] | None:
        """Number of pixels per class in one decoded prediction (or in the valid part of one label); None for a task
        without pixel classes."""
        return None

    def layer(self, decoded: Tensor, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 4"]:
        """RGBA overlay for ``image``. The default is the whole picture; tasks that mark positions leave the rest
        transparent."""
        picture = self.paint(decoded, image)
        return np.dstack([picture, np.full_like(picture[..., 0], 255)])

    def layer_legend(self) -> Legend:
        """What the colors of :meth:`layer` mean, if they differ from those of :meth:`paint`."""
        return self.legend()

    def stored(self, decoded: Tensor) -> Stored | None:
        """One decoded prediction as integers for a 16-bit PNG, or None if one channel cannot hold it."""
        return None

    def distance(self, decoded: Tensor) -> Float[Tensor, "h w"] | None:
        """Meters along the optical axis, if the task predicts them, for point clouds."""
        return None

    @property
    def has_distance(self) -> bool:
        """Whether :meth:`distance` returns a distance."""
        return type(self).distance is not Task.distance

    def directions(self, decoded: Tensor) -> Float[Tensor, "3 h w"] | None:
        """Unit vectors in the camera's frame (x right, y down, z forward), if the task predicts them."""
        return None

    # -- averages over the mirror image, scales and windows ------------------------------------------------------

    def mirrored(self, prediction: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The raw prediction for the mirrored image, from that for the image; its own inverse. Does to predictions what
        :meth:`move` does to labels."""
        return prediction.flip(-1)

    def zoomed(self, prediction: Float[Tensor, "b c h w"], zoom: float) -> Float[Tensor, "b c h w"]:
        """The raw prediction if everything appeared ``zoom`` times as large: values change as :meth:`move` changes
        those of labels, but keep their positions."""
        return prediction

    def to_mean(self, prediction: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The raw prediction in the form in which several predictions for the same pixel are averaged. (For a task that
        is not dense, also over positions.)"""
        return prediction

    def from_mean(self, mean: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The inverse of :meth:`to_mean`: a raw prediction that decodes to the mean. ``decode(from_mean(to_mean(x)))``
        is ``decode(x)``."""
        return mean

    # -- labels --------------------------------------------------------------------------------------------------

    def move(self, target: Tensor, valid: Bool[Tensor, "h w"],
             geometry: Geometry) -> tuple[Tensor, Bool[Tensor, "h2 w2"]]:
        """The label of one sample after a geometric transform. The default resamples a dense map (nearest neighbor);
        tasks whose values change under a flip, a zoom or a rotation override it. No invalid pixel becomes valid."""
        return geometry.labels(target), geometry.labels(valid)

    def fault(self, target: Tensor, valid: Bool[Tensor, "h w"]) -> str | None:
        """What is wrong with one label as read, for instance ``class id 57``, or None."""
        seen = target[..., valid] if target.is_floating_point() else target
        return None if bool(torch.isfinite(seen).all()) else "a value that is not finite"

    def empty(self, size: tuple[int, int]) -> Tensor:
        """A target for a sample that has no label (its ``valid`` is all False)."""
        return torch.zeros(size)

    def collate(self, targets: list[Tensor]) -> Tensor:
        """Stack the targets of one batch, which have the same size."""
        return torch.stack(targets)


class Trivial(ABC):
    """The best constant prediction, computed from training labels one sample at a time."""

    @abstractmethod
    def update(self, target: Tensor, valid: Bool[Tensor, "h w"]) -> None:
        """Add one label (no batch dimension)."""

    @abstractmethod
    def prediction(self, size: tuple[int, int]) -> Float[Tensor, "1 c h w"]:
        """The constant as a raw prediction of the given size, to be decoded and measured like a network's."""


def fault_of(wrong: Bool[Tensor, "h w"], values: Tensor, what: str, limits: str) -> str | None:
    """What :meth:`Task.fault` says of the pixels of a map that are ``wrong``: the first of their values, and how many
    they are."""
    if not (count := int(wrong.sum())):
        return None
    first = values[wrong][0].item()
    return f"{what} {first if isinstance(first, int) else f'{first:g}'} ({count} such pixels; {limits})"


def swapped(target: Tensor, labels: LabelInfo) -> Tensor:
    """Class ids after a flip, which swaps the classes that ``labels.mirror`` pairs."""
    for left, right in labels.mirror:
        target = torch.where(target == left, right, torch.where(target == right, left, target))
    return target


def mirror_order(labels: LabelInfo) -> list[int]:
    """For each type, its counterpart in the mirror: itself, or the other of its pair."""
    order = list(range(len(labels.classes)))
    for left, right in labels.mirror:
        order[left], order[right] = right, left
    return order


def in_mirror(prediction: Float[Tensor, "b c h w"], labels: LabelInfo) -> Float[Tensor, "b c h w"]:
    """Raw predictions, one channel per type, for the mirrored image. (Indexing with a list would wait for the
    device.)"""
    return prediction[:, devices.sent(mirror_order(labels), prediction.device)].flip(-1)


def check_task_name(name: str, where: str) -> None:
    """Refuse a task name that no module may have: networks keep a module per task under its name.

    Args:
        where: the place of the name, for the message.

    Raises:
        InputError: a name with other characters, or one that modules use themselves (``type``, ``train``).
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or hasattr(nn.ModuleDict(), name):
        raise InputError(where, f"'{name}', a name that cannot be a task's",
                         "a letter, then letters, digits, - and _; not a name that PyTorch uses", "rename it")
