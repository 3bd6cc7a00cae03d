"""Base of keypoints2d and edge_texture: regression of a dense response map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from polyptych.metrics._accumulation import Accumulation
from polyptych.metrics._base import Metric, accumulated, ratio
from polyptych.tasks._base import Task, Trivial, fault_of
from polyptych.tasks._pictures import Legend, Stored, gray, scale_legend, stored
from polyptych.types import Loss

LOWEST, HIGHEST = -1.0, 1.0  # of every label and every decoded prediction


class HeatMap(Task):
    """Prediction: one channel. Target and decoded form: float (h w) from -1 (no response) to 1 (the strongest
    that the dataset keeps); the unit of AdaShare's and AutoMTL's tables on Taskonomy.

    The loss is the absolute error of the raw prediction, mean over valid pixels. Decoding clips the prediction to [-1,
    1], which can only bring it closer to the label.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Task.Config):
        accumulation: Accumulation = "global"
        """The error over all pixels of the set, or the mean over images or batches."""

    channels = 1
    headline: ClassVar[str] = "abs"
    higher_is_better: ClassVar[dict[str, bool]] = {"abs": False}
    perfect: ClassVar[float] = 0.0
    standard_weight: float = 7.0  # AdaShare and AutoMTL, for both maps
    config: Config

    def full_size_loss(self, prediction: Float[Tensor, "b 1 h w"], target: Float[Tensor, "b h w"],
                       valid: Bool[Tensor, "b h w"]) -> Loss:
        """Absolute error, summed over valid pixels."""
        return Loss(torch.where(valid, prediction[:, 0] - target, 0).abs().sum(), valid.sum())

    def decode(self, prediction: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b h w"]:
        """The prediction, clipped to [-1, 1]."""
        return prediction[:, 0].clamp(LOWEST, HIGHEST)

    @property
    def meaning(self) -> str:
        return "a response from -1 (none) to 1 (the strongest)"

    def metric(self) -> Metric:
        return accumulated(AbsoluteError, self.config.accumulation)

    def trivial(self) -> Trivial:
        return MedianResponse()

    def paint(self, decoded: Float[Tensor, "h w"],
              image: UInt8[np.ndarray, "hi wi 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """No response is black, the strongest is white."""
        return gray(_share(decoded))

    @property
    def unit(self) -> str:
        return "response, -1 to 1"

    def at(self, decoded: Float[Tensor, "h w"], x: int, y: int) -> str:
        return f"{float(decoded[y, x]):.2f}"

    def legend(self) -> Legend:
        return scale_legend([f"{LOWEST:g}", f"{HIGHEST:g}"], gray)

    def stored(self, decoded: Float[Tensor, "h w"]) -> Stored:
        return stored(65535 * _share(decoded), "response; 0 is -1 and 65535 is 1")

    def to_mean(self, prediction: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
        """The response, clipped to its range."""
        return prediction.clamp(LOWEST, HIGHEST)

    def fault(self, target: Float[Tensor, "h w"], valid: Bool[Tensor, "h w"]) -> str | None:
        wrong = valid & ~((target >= LOWEST) & (target <= HIGHEST))  # NaN fails the comparisons
        return fault_of(wrong, target, "response", "responses lie in [-1, 1]")


def _share(decoded: Float[Tensor, "h w"]) -> Float[np.ndarray, "h w"]:
    return (decoded.float().cpu().numpy() - LOWEST) / (HIGHEST - LOWEST)


class AbsoluteError(Metric):
    """``abs`` = mean \\|p - y\\| over valid pixels, in the unit of the labels."""

    def update(self, prediction: Float[Tensor, "b h w"], target: Float[Tensor, "b h w"],
               valid: Bool[Tensor, "b h w"]) -> None:
        error = torch.where(valid, prediction, 0).double() - torch.where(valid, target, 0).double()
        self.add(error=error.abs().sum(), count=valid.sum())

    def compute(self) -> dict[str, float]:
        return {"abs": ratio(self.sums["error"], self.sums["count"]) if self.sums else float("nan")}


class MedianResponse(Trivial):
    """The median of the training pixels everywhere: the constant with the least absolute error. Computed from a
    histogram, to one part in four thousand of the range."""

    _BINS = 4001  # an odd number: -1, 0 and 1 are centers of bins

    def __init__(self) -> None:
        self.counts = torch.zeros(self._BINS, dtype=torch.int64)

    def update(self, target: Float[Tensor, "h w"], valid: Bool[Tensor, "h w"]) -> None:
        share = (target[valid].double().cpu().clamp(LOWEST, HIGHEST) - LOWEST) / (HIGHEST - LOWEST)
        self.counts += torch.bincount((share * (self._BINS - 1)).round().long(), minlength=self._BINS)

    def prediction(self, size: tuple[int, int]) -> Float[Tensor, "1 1 h w"]:
        below = self.counts.cumsum(0)
        bin_ = int(torch.searchsorted(below, (below[-1] + 1) // 2))
        return torch.full((1, 1, *size), LOWEST + bin_ * (HIGHEST - LOWEST) / (self._BINS - 1))
