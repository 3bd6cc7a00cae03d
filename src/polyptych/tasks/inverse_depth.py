"""Inverse depth: how near every pixel is, as disparity or a multiple of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from polyptych.data.geometry import Geometry
from polyptych.errors import InputError
from polyptych.metrics._accumulation import Accumulation
from polyptych.metrics._base import Metric, accumulated, ratio
from polyptych.tasks._base import Task, Trivial, fault_of
from polyptych.tasks._pictures import Legend, Stored, scale_legend, stored, viridis
from polyptych.types import LabelInfo, Loss


class InverseDepth(Task):
    """Inverse depth or disparity: larger is nearer, 0 is infinitely far and may be a valid label. Target, raw
    prediction and decoded form: float (h w) in the dataset's unit (``labels.unit``: ``px``, or none for a
    fraction). The loss is \\|p - y\\| per valid pixel (MTAN, LibMTL, CAGrad, Auto-Lambda).

    Decoding sets negative predictions to 0, which the published code does not; that can only reduce the error.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Task.Config):
        zoom: Literal["multiply", "divide", "keep"] = "multiply"
        """How zooming changes the label: what looks nearer has a larger inverse depth. ``divide`` is what the code of
        CAGrad and its successors does, which treats it as depth; ``keep`` is what AdaShare does."""
        smallest: float = 0.0
        """Labels up to this value are excluded from training and metrics (0: none). 3e-5 (AdaShare, AutoMTL) excludes
        what is infinitely far away in MTAN's Cityscapes."""
        accumulation: Accumulation = "global"
        """The error over all pixels of the set, or the mean over images or batches (MTAN, CAGrad)."""
        brightest: float | None = None
        """Value that pictures show as brightest (default: 64 for disparities in pixels, 0.25 otherwise)."""

    channels = 1
    headline: ClassVar[str] = "abs"
    higher_is_better: ClassVar[dict[str, bool]] = {
        "abs": False, "rel": False, "RMSE": False, "delta1": True, "delta2": True, "delta3": True}
    perfect: ClassVar[float] = 0.0
    config: Config

    def __init__(self, config: Config, *, labels: LabelInfo):
        super().__init__(config, labels=labels)
        if not 0 <= config.smallest < float("inf"):
            raise InputError("inverse_depth.smallest", str(config.smallest), "0 or more",
                             "0 lets every label count")
        if config.brightest is not None and not 0 < config.brightest < float("inf"):
            raise InputError("inverse_depth.brightest", str(config.brightest), "a number above 0",
                             "leave it out for a default that suits streets")

    def full_size_loss(self, prediction: Float[Tensor, "b 1 h w"], target: Float[Tensor, "b h w"],
                       valid: Bool[Tensor, "b h w"]) -> Loss:
        """\\|p - y\\|, summed over valid pixels."""
        return Loss(torch.where(valid, prediction[:, 0] - target, 0).abs().sum(), valid.sum())

    def decode(self, prediction: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b h w"]:
        """The raw prediction, at least 0."""
        return prediction[:, 0].clamp(min=0)

    @property
    def meaning(self) -> str:
        unit = f" in {self.labels.unit}" if self.labels.unit else ""
        return f"inverse depth{unit}, 0 is infinitely far; set negative values to 0"

    def metric(self) -> Metric:
        """See :class:`InverseDepthError`."""
        return accumulated(partial(InverseDepthError, self.config.smallest), self.config.accumulation)

    def trivial(self) -> Trivial:
        return MedianInverseDepth(self.config.smallest)

    def paint(self, decoded: Float[Tensor, "h w"],
              image: UInt8[np.ndarray, "hi wi 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Viridis from dark blue (infinitely far) to yellow (``brightest`` and nearer), as for depth."""
        return viridis(decoded.float().cpu().numpy() / self.brightest)

    @property
    def brightest(self) -> float:
        """The value that pictures show as the brightest."""
        return self.config.brightest or (64 if self._pixels else 0.25)

    @property
    def _pixels(self) -> bool:
        return self.labels.unit == "px"

    def legend(self) -> Legend:
        return scale_legend([f"{share * self.brightest:g} {self.unit}".strip() for share in (0, 0.5, 1)], viridis)

    def stored(self, decoded: Float[Tensor, "h w"]) -> Stored:
        """Disparities in 1/256 of a pixel, fractions in 1/65535."""
        values = decoded.float().cpu().numpy()
        if self._pixels:
            return stored(256 * values, "disparity in 1/256 px; 65535 is 256 px and more")
        return stored(65535 * values, "inverse depth in 1/65535 of the unit of the labels; 65535 is 1 and more")

    def zoomed(self, prediction: Float[Tensor, "b 1 h w"], zoom: float) -> Float[Tensor, "b 1 h w"]:
        """Changes values according to the option ``zoom``."""
        return _zoom(prediction, zoom, self.config.zoom)

    def move(self, target: Float[Tensor, "h w"], valid: Bool[Tensor, "h w"],
             geometry: Geometry) -> tuple[Tensor, Bool[Tensor, "_ _"]]:
        """Nearest neighbor; values change according to the option ``zoom``. Every training label passes through here,
        so ``smallest`` is applied here too."""
        target, valid = super().move(target, valid & counted(target, self.config.smallest), geometry)
        return _zoom(target, geometry.zoom, self.config.zoom), valid

    def fault(self, target: Float[Tensor, "h w"], valid: Bool[Tensor, "h w"]) -> str | None:
        wrong = valid & ~((target >= 0) & (target < float("inf")))  # NaN fails the comparisons
        return fault_of(wrong, target, "inverse depth", "it is 0 or more")


def _zoom(values: Tensor, zoom: float, how: Literal["multiply", "divide", "keep"]) -> Tensor:
    match how:
        case "multiply":
            return values * zoom
        case "divide":
            return values / zoom
        case "keep":
            return values


def counted(target: Float[Tensor, "*shape"], smallest: float) -> Bool[Tensor, "*shape"]:
    """The labels that count; if ``smallest`` is 0 all do, even 0 itself."""
    return target > smallest if smallest > 0 else torch.ones_like(target, dtype=torch.bool)


class InverseDepthError(Metric):
    """Errors of an inverse depth ``p`` against the label ``y`` over all valid pixels with ``y > smallest`` (all of them
    if that is 0).

    ``abs`` = mean \\|p-y\\| and ``RMSE`` = sqrt(mean (p-y)^2), in the unit of the labels. The others are over
    ``y > 0``: ``rel`` = mean \\|p-y\\|/y, a ratio, not a percentage; ``delta1..3`` = percentage of pixels with
    max(p/y, y/p) < 1.25^k, strictly (AdaShare: <=), where p is clipped to at least 1e-9.

    On MTAN's Cityscapes ``rel`` is dominated by pixels that are infinitely far (y = 1.5e-5): published values are 27 to
    47, but 0.3 to 0.4 with ``smallest`` = 3e-5. Never compare the two.
    """

    names = ("abs", "rel", "RMSE", "delta1", "delta2", "delta3")

    def __init__(self, smallest: float = 0.0):
        super().__init__()
        self._smallest = smallest

    @property
    def options(self) -> dict[str, bool | float | str]:
        return {"smallest": self._smallest}

    def update(self, prediction: Float[Tensor, "b h w"], target: Float[Tensor, "b h w"],
               valid: Bool[Tensor, "b h w"]) -> None:
        valid = valid & counted(target, self._smallest)
        # Masked pixels become a perfect prediction of 1, which adds nothing to any sum of errors.
        y = torch.where(valid, target, 1).double()
        p = torch.where(valid, prediction, 1).double()
        error = (p - y).abs()
        positive = y > 0
        divisor = torch.where(positive, y, 1)
        at_least = p.clamp(min=1e-9)
        ratios = torch.maximum(at_least / divisor, divisor / at_least)
        finite = valid & positive
        self.add(count=valid.sum(), positive=finite.sum(), abs=error.sum(), squared=error.square().sum(),
                 rel=torch.where(positive, error / divisor, 0).sum(),
                 **{f"delta{k}": (finite & (ratios < 1.25**k)).sum() for k in (1, 2, 3)})

    def compute(self) -> dict[str, float]:
        if not self.sums:
            return dict.fromkeys(self.names, float("nan"))
        s = self.sums
        return {"abs": ratio(s["abs"], s["count"]), "rel": ratio(s["rel"], s["positive"]),
                "RMSE": ratio(s["squared"], s["count"]) ** 0.5,
                **{f"delta{k}": 100 * ratio(s[f"delta{k}"], s["positive"]) for k in (1, 2, 3)}}


MOST_VALUES = 1_000_000


class MedianInverseDepth(Trivial):
    """The median of the training pixels everywhere: the constant with the least absolute error."""

    def __init__(self, smallest: float):
        self._smallest = smallest
        # Labels usually come from integers, so a table of distinct values stays small; a list of all pixels would not.
        self._values, self._counts = np.empty(0, np.float32), np.empty(0, np.int64)

    def update(self, target: Float[Tensor, "h w"], valid: Bool[Tensor, "h w"]) -> None:
        seen = target[valid & counted(target, self._smallest)].cpu().numpy()
        values, counts = np.unique(seen, return_counts=True)
        self._count(np.concatenate([self._values, values]), np.concatenate([self._counts, counts]))
        if len(self._values) > MOST_VALUES:  # 16 of 24 bits of what comes from floats: exact to 1 in 30,000
            self._count((self._values.view(np.uint32) >> 8 << 8).view(np.float32), self._counts)

    def _count(self, values: np.ndarray, counts: np.ndarray) -> None:
        self._values, where = np.unique(values, return_inverse=True)
        self._counts = np.bincount(where, counts, len(self._values)).astype(np.int64)

    def prediction(self, size: tuple[int, int]) -> Float[Tensor, "1 1 h w"]:
        total = self._counts.cumsum()
        median = float(self._values[np.searchsorted(total, total[-1] / 2)]) if len(total) else 0.0
        return torch.full((1, 1, *size), median)
