"""Classification: one class for the whole image, from a network that predicts maps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from polyptych.data.geometry import Geometry
from polyptych.errors import InputError
from polyptych.metrics._base import Metric
from polyptych.metrics.accuracy import Accuracy
from polyptych.tasks._base import Task, Trivial, in_mirror, swapped
from polyptych.tasks._class_map import IGNORED, MajorityClass
from polyptych.tasks._pictures import UNLABELLED, class_colors
from polyptych.types import LabelInfo, Likelihood, Loss

_SHOWN = 5  # classes in a picture


class Classification(Task):
    """Prediction: a map of logits (b k h w), as every decoder makes; its **mean over the image** is the k logits of the
    image. For a head that ends in a linear map this is global average pooling before the classifier (Lin, Chen, Yan,
    ICLR 2014, arXiv 1312.4400). Target: class id, int64, a scalar per sample; ``valid`` (h w) is True where there is
    image content, and all False without a label. Decoded form: log-probabilities (b k).

    The loss is the cross-entropy, with logits averaged over valid pixels only, so that the area outside the frame after
    a zoom or a rotation has no influence. Every loss in this library is a sum over pixels: an image is weighted by its
    number of valid pixels, and if all images are entirely valid the normalized loss is the mean over images. In
    evaluation the logits are averaged over all pixels. If images of different sizes share a batch, the maps of the
    smaller ones are padded with zeros; this flattens their log-probabilities but does not change their order, and so no
    accuracy.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Task.Config):
        label_smoothing: float = 0.0
        """Label smoothing: share of the target probability that is spread over all classes, from 0 to 1."""

    headline: ClassVar[str] = "top1"
    higher_is_better: ClassVar[dict[str, bool]] = {"top1": True, "top5": True}
    perfect: ClassVar[float] = 100.0
    dense: ClassVar[bool] = False
    likelihood: Likelihood = "categorical"
    config: Config

    def __init__(self, config: Config, *, labels: LabelInfo):
        super().__init__(config, labels=labels)
        self.channels = len(labels.classes)
        if not self.channels:
            raise InputError("labels of a classification task", "no classes", "the name of every class",
                             "set `classes` in the dataset's LabelInfo")
        if not 0 <= config.label_smoothing <= 1:
            raise InputError("classification.label_smoothing", str(config.label_smoothing), "a number from 0 to 1",
                             "0.1 is usual")

    def loss(self, prediction: Float[Tensor, "b c hp wp"], target: Int[Tensor, " b"],
             valid: Bool[Tensor, "b h w"]) -> Loss:
        """Cross entropy, in float32; the prediction is averaged at its own resolution."""
        return self.full_size_loss(prediction.float(), target, valid)

    def full_size_loss(self, prediction: Float[Tensor, "b c hp wp"], target: Int[Tensor, " b"],
                       valid: Bool[Tensor, "b h w"]) -> Loss:
        """Like :meth:`loss`; the prediction may have any resolution."""
        pixels = valid.sum((1, 2))
        share = F.interpolate(valid[:, None].to(prediction.dtype), prediction.shape[-2:], mode="area")
        total = share.sum((2, 3)).clamp(min=torch.finfo(share.dtype).tiny)
        logits = (torch.where(share > 0, prediction, 0) * share).sum((2, 3)) / total
        loss = F.cross_entropy(logits, torch.where(pixels > 0, target, IGNORED), ignore_index=IGNORED,
                               reduction="none", label_smoothing=self.config.label_smoothing)
        return Loss((loss * pixels).sum(), pixels.sum())

    @property
    def meaning(self) -> str:
        return f"logits of {self.channels} classes at every position; average them over the image"

    def decode(self, prediction: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c"]:
        """Log-probabilities of the classes, in float32."""
        return prediction.float().mean((2, 3)).log_softmax(1)

    def metric(self) -> Metric:
        """See :class:`polyptych.metrics.accuracy.Accuracy`."""
        return Accuracy()

    def trivial(self) -> Trivial:
        return MajorityLabel(self.channels)

    def paint(self, decoded: Float[Tensor, " c"], image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The five most probable classes as bars on the darkened image, the length of a bar its probability."""
        probability = decoded.float().softmax(0).cpu()
        order = probability.topk(min(_SHOWN, self.channels)).indices.tolist()
        return self._bars([(index, float(probability[index])) for index in order], image)

    def paint_target(self, target: Int[Tensor, ""], valid: Bool[Tensor, "h w"],
                     image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """The class as one full bar; pixels without a label are gray."""
        picture = self._bars([(int(target), 1.0)] if bool(valid.any()) else [], image)
        picture[~valid.cpu().numpy()] = UNLABELLED
        return picture

    def _bars(self, rows: list[tuple[int, float]], image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
        import matplotlib
        from PIL import Image, ImageDraw, ImageFont  # training paints nothing

        canvas = Image.fromarray(image // 2)
        draw = ImageDraw.Draw(canvas)
        height, width = image.shape[:2]
        row = max(1, height // _SHOWN)
        font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"),
                                  max(4, min(20, round(0.6 * row))))
        colors = class_colors(self.labels)
        for place, (index, share) in enumerate(rows):
            top = place * row
            draw.rectangle((0, top, round(share * (width - 1)), top + max(0, row - 2)),
                           fill=tuple(int(v) for v in colors[index]))
            draw.text((2, top + row / 2), self.labels.classes[index], (255, 255, 255), font, anchor="lm",
                      stroke_width=1, stroke_fill=(0, 0, 0))
        return np.array(canvas)

    @property
    def unit(self) -> str:
        return "probability of each class"

    def array(self, decoded: Float[Tensor, " c"]) -> Float[np.ndarray, " c"]:
        """Probabilities."""
        return decoded.float().softmax(0).cpu().numpy()

    def at(self, decoded: Float[Tensor, " c"], x: int, y: int) -> str:
        """The most probable class of the image, at any position."""
        probability, index = decoded.float().softmax(0).max(0)
        return f"{self.labels.classes[int(index)]} {100 * float(probability):.0f}%"

    def mirrored(self, prediction: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Swaps the classes that ``labels.mirror`` pairs (turn left, turn right)."""
        return in_mirror(prediction, self.labels)

    def move(self, target: Int[Tensor, ""], valid: Bool[Tensor, "h w"],
             geometry: Geometry) -> tuple[Tensor, Bool[Tensor, "_ _"]]:
        """The class stays; a flip swaps the classes that ``labels.mirror`` pairs (turn left, turn right)."""
        return swapped(target, self.labels) if geometry.mirror else target, geometry.labels(valid)

    def fault(self, target: Tensor, valid: Bool[Tensor, "h w"]) -> str | None:
        if target.ndim or target.is_floating_point():
            return f"a label of shape {tuple(target.shape)} and type {target.dtype} (it is one whole number)"
        if bool(valid.any()) and not 0 <= int(target) < self.channels:
            return f"class id {int(target)} (ids run from 0 to {self.channels - 1})"
        return None

    def empty(self, size: tuple[int, int]) -> Int[Tensor, ""]:
        return torch.zeros((), dtype=torch.int64)


class MajorityLabel(MajorityClass):
    """The most frequent class of the training images. The raw prediction is the logarithm of the frequencies, so
    that ``top5`` is that of the five most frequent."""

    def update(self, target: Int[Tensor, ""], valid: Bool[Tensor, "h w"]) -> None:
        if bool(valid.any()) and 0 <= int(target) < len(self.counts):
            self.counts[int(target)] += 1
