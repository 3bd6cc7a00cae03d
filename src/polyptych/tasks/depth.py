"""Depth: the distance of every pixel, in meters."""

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
from polyptych.metrics._accumulation import Accumulation
from polyptych.metrics._base import Metric, accumulated
from polyptych.metrics.depth import DepthError
from polyptych.ranges import check_range
from polyptych.tasks._base import Task, Trivial, fault_of
from polyptych.tasks._pictures import Legend, Stored, scale_legend, stored, viridis
from polyptych.types import LabelInfo, Loss

NEAREST, FARTHEST = 1e-3, 1e3  # meters; the range of every decoded depth


class Depth(Task):
    """Metric depth. Target and decoded form: float (h w), meters, positive where valid.

    What the one channel of the raw prediction means follows from the loss: meters for ``l1``, ``l2`` and
    ``berhu``; the **natural logarithm** of meters for ``log_l1``, ``log_l2`` and ``silog``. So every loss and its
    gradient are defined for any real output of a network. Decoding clips the depth to 1 mm .. 1 km.

    With x the difference between raw prediction and label (or its logarithm), per valid pixel:

    - ``l1``: \\|x\\| (MTAN, survey, ATRC, InvPT); ``l2``: x^2 (GradNorm); ``log_l1`` and ``log_l2``: the same
      on logarithms;
    - ``berhu``: \\|x\\| up to c, (x^2 + c^2) / 2c beyond, c = 0.2 max \\|x\\| (Laina et al., 3DV 2016, arXiv
      1606.00373). We take the maximum over the image, the paper over the batch: this way the loss of an image does not
      depend on the others in its batch;
    - ``silog``: mean x^2 - lambda (mean x)^2 of every image (Eigen, Puhrsch, Fergus, NeurIPS 2014, arXiv
      1406.2283), weighted by its number of valid pixels.

    ``gradient`` adds \\|S_x x\\| + \\|S_y x\\| of every pixel, where S are the 3x3 Sobel filters with zero padding;
    ASTMT uses it with weight 1 in addition to ``l1``. Here x is zero where there is no label; ASTMT compares the
    prediction with 0 there.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Task.Config):
        loss: Literal["l1", "l2", "log_l1", "log_l2", "silog", "berhu"] = "l1"
        """Loss per pixel; with the logarithmic ones, the network predicts the logarithm of depth."""
        silog_lambda: float = 0.5
        """Weight of the squared mean in silog: 0 equals log_l2; 1 ignores the scale of the scene."""
        gradient: float = 0.0
        """Weight of the depth gradient loss (Sobel); 1 in ASTMT."""
        accumulation: Accumulation = "global"
        """The error over all pixels of the set, or the mean over images (ASTMT) or batches (MTAN, CAGrad; AdaShare:
        batch_weighted)."""
        max_depth: float = 10.0
        """Distance in meters that pictures show as darkest; labels and predictions share the scale."""

    channels = 1
    headline: ClassVar[str] = "RMSE"
    higher_is_better: ClassVar[dict[str, bool]] = {
        name: name.startswith("delta") for name in DepthError.names}
    perfect: ClassVar[float] = 0.0
    config: Config

    def __init__(self, config: Config, *, labels: LabelInfo):
        super().__init__(config, labels=labels)
        self.logarithmic = config.loss in ("log_l1", "log_l2", "silog")
        self.likelihood = "gaussian" if config.loss in ("l2", "log_l2", "silog") else "laplace"
        if not 0 <= config.silog_lambda <= 1:
            raise InputError("depth.silog_lambda", str(config.silog_lambda), "a number from 0 to 1",
                             "0.5 is usual")
        check_range("depth.gradient", config.gradient, 0, do="0 leaves it out")
        if not config.max_depth > 0:
            raise InputError("depth.max_depth", str(config.max_depth), "a distance in meters above 0",
                             "10 suits rooms, 80 streets")

    def full_size_loss(self, prediction: Float[Tensor, "b 1 h w"], target: Float[Tensor, "b h w"],
                       valid: Bool[Tensor, "b h w"]) -> Loss:
        """The chosen loss, summed over valid pixels."""
        label = target.log() if self.logarithmic else target
        x = torch.where(valid, prediction[:, 0] - label, 0)
        match self.config.loss:
            case "l1" | "log_l1":
                total = x.abs().sum()
            case "l2" | "log_l2":
                total = x.square().sum()
            case "berhu":
                total = _berhu(x)
            case "silog":
                total = _scale_invariant(x, valid.sum((1, 2)), self.config.silog_lambda)
        if self.config.gradient:
            total = total + self.config.gradient * _slopes(x).abs().sum()
        return Loss(total, valid.sum())

    def decode(self, prediction: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b h w"]:
        """Meters, within 1 mm .. 1 km."""
        raw = prediction[:, 0]
        if self.logarithmic:
            return raw.clamp(math.log(NEAREST), math.log(FARTHEST)).exp()
        return raw.clamp(NEAREST, FARTHEST)

    @property
    def meaning(self) -> str:
        return "the natural logarithm of depth in meters" if self.logarithmic else "depth in meters"

    def metric(self) -> Metric:
        """See :class:`polyptych.metrics.depth.DepthError`."""
        return accumulated(DepthError, self.config.accumulation)

    def trivial(self) -> Trivial:
        return MeanDepth(self.logarithmic)

    def paint(self, decoded: Float[Tensor, "h w"],
              image: UInt8[np.ndarray, "hi wi 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Viridis from yellow (0 m) to dark blue (``max_depth`` and beyond), so that near surfaces are bright."""
        return viridis(1 - decoded.float().cpu().numpy() / self.config.max_depth)

    @property
    def unit(self) -> str:
        return "m"

    def at(self, decoded: Float[Tensor, "h w"], x: int, y: int) -> str:
        return f"{float(decoded[y, x]):.2f} m"

    def legend(self) -> Legend:
        names = [f"{share * self.config.max_depth:g} m" for share in (0, 0.5, 1)]
        return scale_legend(names, lambda share: viridis(1 - share))

    def stored(self, decoded: Float[Tensor, "h w"]) -> Stored:
        """Millimeters."""
        return stored(1000 * decoded.float().cpu().numpy(), "depth in millimeters; 65535 is 65.535 m and beyond")

    def distance(self, decoded: Float[Tensor, "h w"]) -> Float[Tensor, "h w"]:
        return decoded

    def zoomed(self, prediction: Float[Tensor, "b 1 h w"], zoom: float) -> Float[Tensor, "b 1 h w"]:
        """Objects that appear larger are nearer: depth is divided by the zoom."""
        return prediction - math.log(zoom) if self.logarithmic else prediction / zoom

    def move(self, target: Float[Tensor, "h w"], valid: Bool[Tensor, "h w"],
             geometry: Geometry) -> tuple[Tensor, Bool[Tensor, "_ _"]]:
        """Nearest neighbor; a zoom makes objects appear nearer, so depth is divided by the zoom."""
        target, valid = super().move(target, valid, geometry)
        return target / geometry.zoom, valid

    def fault(self, target: Float[Tensor, "h w"], valid: Bool[Tensor, "h w"]) -> str | None:
        wrong = valid & ~((target > 0) & (target <= FARTHEST))  # NaN and infinity fail the comparisons
        return fault_of(wrong, target, "depth", f"depth lies in (0, {FARTHEST:g}] m")


def _slopes(x: Float[Tensor, "b h w"]) -> Float[Tensor, "b 2 h w"]:
    """Responses of the Sobel filters along rows and columns."""
    smooth, slope = x.new_tensor([1.0, 2.0, 1.0]), x.new_tensor([-1.0, 0.0, 1.0])
    filters = torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)])
    return F.conv2d(x[:, None], filters[:, None], padding=1)


def _berhu(x: Float[Tensor, "b h w"]) -> Float[Tensor, ""]:
    size = x.abs()
    limit = 0.2 * size.detach().amax((1, 2), keepdim=True)
    beyond = (x.square() + limit.square()) / (2 * limit).clamp(min=torch.finfo(x.dtype).tiny)
    return torch.where(size <= limit, size, beyond).sum()


def _scale_invariant(x: Float[Tensor, "b h w"], count: Tensor, weight: float) -> Float[Tensor, ""]:
    """Sum over images of their number of valid pixels times mean x^2 - weight (mean x)^2."""
    return (x.square().sum((1, 2)) - weight * x.sum((1, 2)).square() / count.clamp(min=1)).sum()


class MeanDepth(Trivial):
    """The mean depth of the training pixels everywhere: the constant with the least RMSE."""

    def __init__(self, logarithmic: bool):
        self.logarithmic, self.sum, self.count = logarithmic, 0.0, 0

    def update(self, target: Float[Tensor, "h w"], valid: Bool[Tensor, "h w"]) -> None:
        self.sum += float(target[valid].double().sum())
        self.count += int(valid.sum())

    def prediction(self, size: tuple[int, int]) -> Float[Tensor, "1 1 h w"]:
        mean = self.sum / self.count if self.count else 1.0
        return torch.full((1, 1, *size), math.log(mean) if self.logarithmic else mean)
