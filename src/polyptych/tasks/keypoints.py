"""Keypoints: where the joints of a person (or the corners of a room) are, as heat maps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from polyptych.data.geometry import Geometry
from polyptych.errors import InputError
from polyptych.metrics._base import Metric
from polyptych.metrics.keypoints import KeypointError, peaks, visible_points
from polyptych.tasks._base import Task, Trivial, in_mirror, mirror_order
from polyptych.tasks._pictures import UNLABELLED, Legend, class_colors, class_legend
from polyptych.types import LabelInfo, Likelihood, Loss


class Keypoints(Task):
    """One heat map per type of keypoint. Target: float (persons, k, 3) with x, y (pixels of the sample's
    frame, the center of a pixel has integer coordinates) and visible (0 or 1); a batch is padded with
    invisible persons. Decoded form: heat maps (b k h w).

    The label's heat map has a Gaussian peak of height 1 at every visible keypoint, and the maximum where peaks of
    several persons overlap. It is rendered on the device **at the resolution of the prediction**, so that a coarse
    auxiliary prediction is not enlarged first; each of its cells is weighted by its number of valid label pixels.

    - ``softmax``: cross entropy between the heat map as a distribution over places and the softmax of the raw
      prediction over places, for every type that the image shows, times its valid pixels, mean over the k
      maps (Mask R-CNN: He et al., ICCV 2017, arXiv 1703.06870, with the whole label in one cell). It learns where a
      keypoint is, not whether there is one, and needs far fewer steps than the other two;
    - ``mse``: squared error of the raw prediction, mean over the k maps (GradNorm: Chen et al., ICML 2018,
      arXiv 1711.02257, who predict at 80 x 80);
    - ``focal``: the penalty-reduced focal loss of CenterNet on the sigmoid, mean over the k maps (Zhou, Wang,
      Krähenbühl, arXiv 1904.07850, eq. 1, alpha 2, beta 4). We divide by valid pixels, the paper by keypoints, because
      every loss in this library is a sum over pixels. Peaks are centered on cells, as in the paper.

    There is no customary weight. The standard weight makes the loss of an untrained network about as large as those of
    other tasks: 0.1 for ``softmax``, 100 for ``mse`` and 1000 for ``focal``, which are tiny because most pixels are far
    from any keypoint.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Task.Config):
        loss: Literal["softmax", "mse", "focal"] = "softmax"
        """Cross-entropy over positions, squared error of heat maps, or CenterNet's focal loss."""
        sigma: float = 0.02
        """Standard deviation of a peak as a fraction of the image's diagonal."""
        threshold: float = 0.1
        """Pictures show a heat map peak only above this height."""

        @property
        def standard_weight(self) -> float:
            return {"softmax": 0.1, "mse": 100.0, "focal": 1000.0}[self.loss]

    headline: ClassVar[str] = "error"
    higher_is_better: ClassVar[dict[str, bool]] = {"error": False, "PCK": True}
    perfect: ClassVar[float] = 0.0
    likelihood: Likelihood = "categorical"
    config: Config

    def __init__(self, config: Config, *, labels: LabelInfo):
        super().__init__(config, labels=labels)
        self.channels = len(labels.classes)
        self.standard_weight = config.standard_weight
        self.likelihood = "gaussian" if config.loss == "mse" else "categorical"
        if not self.channels:
            raise InputError("labels of task 'keypoints'", "no types", "the name of every type of keypoint",
                             "set `classes` in the dataset's LabelInfo")
        if not 0 < config.sigma < 1:
            raise InputError("keypoints.sigma", str(config.sigma), "a fraction of the diagonal, above 0 and "
                             "below 1", "0.02 is a good start")

    def loss(self, prediction: Float[Tensor, "b c hp wp"], target: Float[Tensor, "b p c 3"],
             valid: Bool[Tensor, "b h w"]) -> Loss:
        """The chosen loss, summed over valid pixels of the label, in float32."""
        return self.full_size_loss(prediction.float(), target, valid)

    def full_size_loss(self, prediction: Float[Tensor, "b c hp wp"], target: Float[Tensor, "b p c 3"],
                       valid: Bool[Tensor, "b h w"]) -> Loss:
        """Like :meth:`loss`; the prediction may have any resolution."""
        size = (prediction.shape[2], prediction.shape[3])
        pixels = _pixels_per_cell(valid, size).to(prediction.dtype)
        heat = self.render(target, valid, size).to(prediction.dtype)
        raw = torch.where(pixels > 0, prediction, 0)
        if self.config.loss == "softmax":
            return Loss(_softmax_cross_entropy(raw, heat, pixels), valid.sum())
        cells = _focal(raw, heat) if self.config.loss == "focal" else (raw - heat).square()
        return Loss((cells.mean(1, keepdim=True) * pixels).sum(), valid.sum())

    @torch.no_grad()
    def render(self, target: Float[Tensor, "b p c 3"], valid: Bool[Tensor, "b h w"],
               size: tuple[int, int]) -> Float[Tensor, "b c hp wp"]:
        """Heat maps of a batch of labels at resolution ``size``; ``valid`` has the resolution of the
        labels."""
        points, visible = visible_points(target.float(), valid)
        sigma = self.config.sigma * math.hypot(*valid.shape[-2:])
        # The Gaussian is separable: two short profiles per keypoint, and one outer product.
        along_x, along_y = (
            _profile(points[..., axis], sigma, valid.shape[-1 - axis], size[1 - axis],
                     snap=self.config.loss == "focal") for axis in (0, 1))
        along_y = along_y * visible[..., None]
        heat = along_y.new_zeros(len(valid), self.channels, *size)
        for person in range(target.shape[1]):
            bumps = along_y[:, person, :, :, None] * along_x[:, person, :, None, :]
            heat = torch.maximum(heat, bumps)
        return heat

    @property
    def meaning(self) -> str:
        return f"heat of {self.channels} keypoints ({self.config.loss} loss); each is where its map is largest"

    def decode(self, prediction: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Heat maps: the raw prediction for ``mse``, its sigmoid for ``focal``; for ``softmax`` the probability of each
        position, relative to the maximum of a single label peak."""
        if self.config.loss == "softmax":
            sigma = self.config.sigma * math.hypot(*prediction.shape[-2:])
            return (prediction.flatten(2).softmax(2).view_as(prediction) * (2 * math.pi * sigma**2)).clamp(max=1)
        return prediction.sigmoid() if self.config.loss == "focal" else prediction

    def metric(self) -> Metric:
        """See :class:`polyptych.metrics.keypoints.KeypointError`."""
        return KeypointError()

    def trivial(self) -> Trivial:
        return MeanPosition(self)

    def paint(self, decoded: Float[Tensor, "c h w"],
              image: UInt8[np.ndarray, "hi wi 3"]) -> UInt8[np.ndarray, "hi wi 3"]:
        """The peaks that exceed the threshold as dots of the color of their type, joined by the skeleton, on
        the darkened image."""
        return self._on_dark(self._found(decoded), (decoded.shape[1], decoded.shape[2]), image)

    def paint_target(self, target: Float[Tensor, "p c 3"], valid: Bool[Tensor, "h w"],
                     image: UInt8[np.ndarray, "hi wi 3"]) -> UInt8[np.ndarray, "hi wi 3"]:
        """All persons; pixels without a label are gray."""
        points, visible = (x[0].cpu() for x in visible_points(target[None], valid[None]))
        persons = torch.cat([points, visible[..., None]], -1).float().numpy()
        picture = self._on_dark(persons, (valid.shape[0], valid.shape[1]), image)
        if picture.shape[:2] == tuple(valid.shape):
            picture[~valid.cpu().numpy()] = UNLABELLED
        return picture

    def layer(self, decoded: Float[Tensor, "c h w"],
              image: UInt8[np.ndarray, "hi wi 3"]) -> UInt8[np.ndarray, "hi wi 4"]:
        """Dots and lines; the rest is transparent."""
        frame, size = (decoded.shape[1], decoded.shape[2]), (image.shape[0], image.shape[1])
        return self._draw(self._found(decoded), frame, size)

    def _found(self, decoded: Float[Tensor, "c h w"]) -> Float[np.ndarray, "1 c 3"]:
        person = self.array(decoded)
        return np.concatenate([person[:, :2], person[:, 2:] > self.config.threshold], 1)[None]

    def _on_dark(self, persons: Float[np.ndarray, "p c 3"], frame: tuple[int, int],
                 image: UInt8[np.ndarray, "hi wi 3"]) -> UInt8[np.ndarray, "hi wi 3"]:
        drawn = self._draw(persons, frame, (image.shape[0], image.shape[1]))
        return np.where(drawn[..., 3:] > 0, drawn[..., :3], image // 2)

    def _draw(self, persons: Float[np.ndarray, "p c 3"], frame: tuple[int, int],
              size: tuple[int, int]) -> UInt8[np.ndarray, "hi wi 4"]:
        from PIL import Image, ImageDraw  # training paints nothing

        height, width = size
        canvas = Image.new("RGBA", (width, height))
        draw = ImageDraw.Draw(canvas)
        radius = max(1.5, math.hypot(height, width) / 120)
        scale = np.array([width / frame[1], height / frame[0]])
        colors = [(*(int(v) for v in color), 255) for color in class_colors(self.labels)]
        for person in persons:
            places = [tuple(xy) for xy in (person[:, :2] + 0.5) * scale - 0.5]
            shown = person[:, 2] > 0.5
            for a, b in self.labels.skeleton:
                if shown[a] and shown[b]:
                    draw.line([places[a], places[b]], fill=(255, 255, 255, 255), width=max(1, round(radius / 2)))
            for (x, y), color, seen in zip(places, colors, shown, strict=True):
                if seen:
                    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color)
        return np.array(canvas)

    @property
    def unit(self) -> str:
        return "x and y in pixels, height of the peak"

    def array(self, decoded: Float[Tensor, "c h w"]) -> Float[np.ndarray, "c 3"]:
        """For each type, x and y of the peak in pixels, and its height, which is a confidence."""
        heat = decoded.float().cpu()
        places = peaks(heat[None], torch.ones(1, *heat.shape[-2:], dtype=torch.bool))[0]
        return torch.cat([places, heat.amax((1, 2))[:, None]], 1).numpy()

    def at(self, decoded: Float[Tensor, "c h w"], x: int, y: int) -> str:
        """The type with the highest heat map value there, and that value; ``none`` if none exceeds the threshold."""
        height, index = decoded[:, y, x].max(0)
        if not height > self.config.threshold:
            return "none"
        return f"{self.labels.classes[int(index)]} {float(height):.2f}"

    def legend(self) -> Legend:
        return class_legend(self.labels)

    def mirrored(self, prediction: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Swaps the types that ``labels.mirror`` pairs (left and right ankle)."""
        return in_mirror(prediction, self.labels)

    def to_mean(self, prediction: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Probabilities for ``focal``; otherwise the raw prediction, because a window alone does not determine the
        softmax over the whole image."""
        return prediction.sigmoid() if self.config.loss == "focal" else prediction

    def from_mean(self, mean: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return mean.logit(eps=1e-7) if self.config.loss == "focal" else mean

    def move(self, target: Float[Tensor, "p c 3"], valid: Bool[Tensor, "h w"],
             geometry: Geometry) -> tuple[Tensor, Bool[Tensor, "_ _"]]:
        """Points are transformed exactly; a flip swaps the types that ``labels.mirror`` pairs (left and right ankle).
        A point that leaves the frame becomes invisible; coordinates of invisible points are zero."""
        height, width = geometry.size
        points, visible = geometry.points(target[..., :2]), target[..., 2] > 0.5
        x, y = points.unbind(-1)
        visible = visible & (x >= -0.5) & (x < width - 0.5) & (y >= -0.5) & (y < height - 0.5)
        points = torch.where(visible[..., None], points, 0)
        moved = torch.cat([points, visible[..., None].to(points.dtype)], -1)
        if geometry.mirror:
            moved = moved[:, mirror_order(self.labels)]
        return moved, geometry.labels(valid)

    def fault(self, target: Tensor, valid: Bool[Tensor, "h w"]) -> str | None:
        if target.ndim != 3 or target.shape[1:] != (self.channels, 3):
            return f"keypoints of shape {tuple(target.shape)} (the shape is persons, {self.channels}, 3)"
        if not bool(torch.isfinite(target).all()):
            return "a keypoint that is not finite"
        if not bool(((target[..., 2] == 0) | (target[..., 2] == 1)).all()):
            return "a visibility other than 0 and 1"
        return None

    def empty(self, size: tuple[int, int]) -> Float[Tensor, "0 c 3"]:
        return torch.zeros(0, self.channels, 3)

    def collate(self, targets: list[Float[Tensor, "_ c 3"]]) -> Float[Tensor, "b p c 3"]:
        """Stack targets, padded with invisible persons (zeros) to the largest number."""
        persons = max(len(target) for target in targets)
        return torch.stack([F.pad(target, (0, 0, 0, 0, 0, persons - len(target))) for target in targets])


def _profile(x: Float[Tensor, "*shape"], sigma: float, length: int, cells: int,
             snap: bool) -> Float[Tensor, "*shape cells"]:
    """Gaussian around ``x``, given in ``length`` pixels, sampled at the centers of ``cells`` cells. ``snap``
    moves its center to the nearest cell."""
    scale = cells / length
    center = (x + 0.5) * scale - 0.5
    if snap:
        center = center.round().clamp(0, cells - 1)
    offset = torch.arange(cells, device=x.device) - center[..., None]
    return torch.exp(-(offset / (sigma * scale)).square() / 2)


def _pixels_per_cell(valid: Bool[Tensor, "b h w"], size: tuple[int, int]) -> Float[Tensor, "b 1 hp wp"]:
    """Number of valid pixels per cell; for each image they add up to its number of valid pixels."""
    if tuple(valid.shape[-2:]) == size:
        return valid[:, None].float()
    share = F.interpolate(valid[:, None].float(), size, mode="area")
    # If the sizes do not divide evenly, cells overlap, so their sum is rescaled.
    total = share.sum((1, 2, 3), keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
    return share * (valid.sum((1, 2))[:, None, None, None] / total)


def _softmax_cross_entropy(raw: Float[Tensor, "b c h w"], heat: Float[Tensor, "b c h w"],
                           pixels: Float[Tensor, "b 1 h w"]) -> Float[Tensor, ""]:
    """Sum over images of valid pixels times the mean over types of -sum q log softmax(raw); q, the heat map normalized
    to sum to one, is zero everywhere for a type that is not visible in the image."""
    weight = (heat * pixels).flatten(2)
    q = weight / weight.sum(2, keepdim=True).clamp(min=1e-6)
    score = raw.masked_fill(pixels == 0, torch.finfo(raw.dtype).min / 2).flatten(2)
    return -((q * score.log_softmax(2)).sum(2).mean(1) * pixels.sum((1, 2, 3))).sum()


def _focal(raw: Float[Tensor, "b c h w"], heat: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    p = raw.sigmoid()
    hit = -(1 - p).square() * F.logsigmoid(raw)
    miss = -(1 - heat).pow(4) * p.square() * F.logsigmoid(-raw)
    return torch.where(heat == 1, hit, miss)


class MeanPosition(Trivial):
    """Every type at its mean position in the training images, relative to their size: the constant position with the
    least squared distance. A type that never occurs is placed at the center."""

    def __init__(self, task: Keypoints):
        self.task = task
        self.sum = torch.zeros(task.channels, 2, dtype=torch.float64)
        self.count = torch.zeros(task.channels, dtype=torch.int64)

    def update(self, target: Float[Tensor, "p c 3"], valid: Bool[Tensor, "h w"]) -> None:
        points, visible = (x[0].cpu() for x in visible_points(target[None].double(), valid[None]))
        size = torch.tensor([valid.shape[1], valid.shape[0]])
        self.sum += ((points + 0.5) / size * visible[..., None]).sum(0)
        self.count += visible.sum(0)

    def prediction(self, size: tuple[int, int]) -> Float[Tensor, "1 c h w"]:
        center = torch.full_like(self.sum, 0.5)
        mean = torch.where(self.count[:, None] > 0, self.sum / self.count.clamp(min=1)[:, None], center)
        points = mean * torch.tensor([size[1], size[0]]) - 0.5
        target = torch.cat([points, torch.ones_like(points[:, :1])], 1)[None, None]
        heat = self.task.render(target, torch.ones(1, *size, dtype=torch.bool), size)
        match self.task.config.loss:
            case "softmax":
                return heat.clamp(min=1e-6).log()
            case "focal":
                return heat.clamp(1e-4, 1 - 1e-4).logit()  # a probability of 1 has no logit
            case _:
                return heat
