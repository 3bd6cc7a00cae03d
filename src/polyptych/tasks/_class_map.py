"""Base of semantic segmentation and part segmentation: one class id for every pixel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from polyptych.data.geometry import Geometry
from polyptych.errors import InputError
from polyptych.metrics._accumulation import Accumulation
from polyptych.metrics._base import Metric, accumulated
from polyptych.metrics.confusion import Absent, ConfusionMatrix
from polyptych.tasks._base import Task, Trivial, fault_of, in_mirror, swapped
from polyptych.tasks._pictures import UNLABELLED, Legend, Stored, class_colors, class_legend
from polyptych.types import LabelInfo, Likelihood, Loss

IGNORED = -100


class ClassMap(Task):
    """Prediction: logits (b k h w), one channel per class of ``labels.classes``. Target and decoded form:
    class ids, int64 (h w). Ids under an invalid pixel are arbitrary."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Task.Config):
        label_smoothing: float = 0.0
        """Label smoothing: share of the target probability that is spread over all classes, from 0 to 1."""
        class_weights: tuple[float, ...] = ()
        """Weight of each class in the loss, in the order of class ids (default: 1). The sum is divided by the number of
        valid pixels, not by the sum of weights."""
        absent: Absent = "skip"
        """What a class that occurs in no label and no prediction contributes to the mIoU: nothing, NaN or zero."""
        require_tp: bool = False
        """Average the IoU only over classes with at least one true positive (AdaShare, AutoMTL; inflates the
        number)."""
        union_unlabeled: bool = False
        """Predictions on unlabeled pixels count toward the union, as in MTAN's code of 2019 (with accumulation
        image)."""
        accumulation: Accumulation = "global"
        """One confusion matrix over the whole set, or the mean over images (MTAN 2019) or batches."""

    headline: ClassVar[str] = "mIoU"
    by_rows: ClassVar[bool] = True
    higher_is_better: ClassVar[dict[str, bool]] = {
        "mIoU": True, "pixel_accuracy": True, "mean_accuracy": True}
    perfect: ClassVar[float] = 100.0
    likelihood: Likelihood = "categorical"
    config: Config

    def __init__(self, config: Config, *, labels: LabelInfo):
        super().__init__(config, labels=labels)
        name, self.channels = config.name, len(labels.classes)
        if not self.channels:
            raise InputError(f"labels of task '{name}'", "no classes", "the name of every class",
                             "set `classes` in the dataset's LabelInfo")
        if len(config.class_weights) not in (0, self.channels):
            raise InputError(f"{name}.class_weights", f"{len(config.class_weights)} weights",
                             f"{self.channels}, one per class", "give one weight for every class or none")
        if not 0 <= config.label_smoothing <= 1:
            raise InputError(f"{name}.label_smoothing", str(config.label_smoothing), "a number from 0 to 1",
                             "0.1 is usual")
        if config.absent == "nan" and config.accumulation != "global":
            raise InputError(f"{name}.absent", f"nan with accumulation {config.accumulation}", "skip or zero",
                             "choose one: few images show every class, so most would drop out of the mean")
        self._weights = torch.tensor(config.class_weights) if config.class_weights else None

    def full_size_loss(self, prediction: Float[Tensor, "b c h w"], target: Int[Tensor, "b h w"],
                       valid: Bool[Tensor, "b h w"]) -> Loss:
        """Cross entropy, summed over valid pixels."""
        if self._weights is not None:
            self._weights = self._weights.to(prediction)  # copied once, not at every step
        total = F.cross_entropy(prediction, torch.where(valid, target, IGNORED), weight=self._weights,
                                ignore_index=IGNORED, reduction="sum",
                                label_smoothing=self.config.label_smoothing)
        return Loss(total, valid.sum())

    @property
    def meaning(self) -> str:
        return f"logits of {self.channels} classes; the class of a pixel is the largest"

    def decode(self, prediction: Float[Tensor, "b c h w"]) -> Int[Tensor, "b h w"]:
        """The most probable class; on ties the lowest id, and NaN wins over all, as in ``argmax``."""
        return prediction.max(1).indices  # argmax over a strided axis takes four times as long on a CPU

    def metric(self) -> Metric:
        """See :class:`polyptych.metrics.confusion.ConfusionMatrix`, whose ``breakdown`` gives the IoU of
        each."""
        return accumulated(partial(ConfusionMatrix, self.channels, self.labels.classes, self.config.absent,
                                   self.config.require_tp, self.config.union_unlabeled), self.config.accumulation)

    def trivial(self) -> Trivial:
        return MajorityClass(self.channels)

    def paint(self, decoded: Int[Tensor, "h w"],
              image: UInt8[np.ndarray, "hi wi 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """One color per class; ids without a class are gray."""
        palette = np.concatenate([class_colors(self.labels), np.full((1, 3), UNLABELLED, np.uint8)])
        ids = decoded.cpu().numpy()
        return palette[np.where((ids >= 0) & (ids < self.channels), ids, self.channels)]

    @property
    def unit(self) -> str:
        return "class id"

    def at(self, decoded: Int[Tensor, "h w"], x: int, y: int) -> str:
        """The name of the class."""
        return self.labels.classes[int(decoded[y, x])]

    def areas(self, decoded: Int[Tensor, "h w"], valid: Bool[Tensor, "h w"] | None = None) -> Int[np.ndarray, " k"]:
        ids = (decoded if valid is None else decoded[valid]).flatten().cpu()
        return torch.bincount(ids[(ids >= 0) & (ids < self.channels)], minlength=self.channels).numpy()

    def legend(self) -> Legend:
        return class_legend(self.labels)

    def stored(self, decoded: Int[Tensor, "h w"]) -> Stored:
        """Class ids."""
        return Stored(decoded.cpu().numpy().astype(np.uint16), "class id")

    def mirrored(self, prediction: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Swaps the classes that ``labels.mirror`` pairs (left arm, right arm)."""
        return in_mirror(prediction, self.labels)

    def to_mean(self, prediction: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Probabilities."""
        return prediction.softmax(1)

    def from_mean(self, mean: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Their logarithms, which are logits."""
        return mean.clamp(min=torch.finfo(mean.dtype).tiny).log()

    def move(self, target: Int[Tensor, "h w"], valid: Bool[Tensor, "h w"],
             geometry: Geometry) -> tuple[Tensor, Bool[Tensor, "_ _"]]:
        """Nearest neighbor; a flip swaps the classes that ``labels.mirror`` pairs (left arm, right arm)."""
        target, valid = super().move(target, valid, geometry)
        return swapped(target, self.labels) if geometry.mirror else target, valid

    def fault(self, target: Int[Tensor, "h w"], valid: Bool[Tensor, "h w"]) -> str | None:
        wrong = valid & ((target < 0) | (target >= self.channels))
        return fault_of(wrong, target, "class id", f"ids run from 0 to {self.channels - 1}")

    def empty(self, size: tuple[int, int]) -> Int[Tensor, "h w"]:
        return torch.zeros(size, dtype=torch.int64)


class MajorityClass(Trivial):
    """The most frequent class everywhere: the constant with the best pixel accuracy and mIoU. The raw
    prediction is the logarithm of the frequencies, which is also the best constant for the cross entropy."""

    def __init__(self, num_classes: int):
        self.counts = torch.zeros(num_classes, dtype=torch.int64)

    def update(self, target: Int[Tensor, "h w"], valid: Bool[Tensor, "h w"]) -> None:
        k = len(self.counts)
        seen = target[valid & (target >= 0) & (target < k)]
        self.counts += torch.bincount(seen.cpu(), minlength=k)

    def prediction(self, size: tuple[int, int]) -> Float[Tensor, "1 c h w"]:
        logits = self.counts.double().clamp(min=0.5).log()
        return (logits - logits.logsumexp(0)).float()[None, :, None, None].expand(1, -1, *size)
