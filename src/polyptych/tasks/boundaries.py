"""Boundaries: where one object, surface or region ends and another begins."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from polyptych.data.geometry import Geometry
from polyptych.errors import InputError
from polyptych.metrics._base import FinalMetric, Metric
from polyptych.metrics.boundaries import BoundaryF
from polyptych.tasks._binary_map import BinaryMap, weighted_cross_entropy
from polyptych.tasks._pictures import Legend, gray, scale_legend
from polyptych.types import LabelInfo, Loss


class Boundaries(BinaryMap):
    """Cross entropy with a fixed weight w of boundary pixels, -[w y log s(x) + (1-w) (1-y) log(1 - s(x))]; w
    = 0.95 everywhere on PASCAL-Context and in the survey and InvPT, 0.8 on NYUD in ASTMT, ATRC and DeMT.
    Invalid pixels do not count, whereas the survey divides by all elements.

    ``F`` is a fast approximation for monitoring training, **not odsF**: see
    :class:`polyptych.metrics.boundaries.BoundaryF`. With ``benchmark``, odsF, oisF and AP are measured when the run is
    finished (:class:`polyptych.metrics.boundary_scores.BoundaryScores`).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(BinaryMap.Config):
        weight: float = 0.95
        """Weight of boundary pixels in the loss, from 0 to 1; the other pixels have the rest."""
        threshold: float = 0.5
        """Probability above which a pixel is a boundary, for the fast F-measure."""
        tolerance: float = 0.0075
        """Matching tolerance as a fraction of the image's diagonal, for the fast F-measure."""

        benchmark: Literal["", "bsds", "nyud", "pascal", "nyud_survey", "pascal_survey"] = ""
        """Also measure odsF, oisF and AP at the end, by this protocol; takes 0.1 to 0.3 s of processor time per
        image."""

    headline: ClassVar[str] = "F"
    higher_is_better: ClassVar[dict[str, bool]] = {"F": True, "precision": True, "recall": True}
    standard_weight: float = 50.0
    tint: ClassVar[tuple[int, int, int]] = (255, 48, 32)
    config: Config

    def __init__(self, config: Config, *, labels: LabelInfo):
        super().__init__(config, labels=labels)
        for name in ("weight", "threshold", "tolerance"):
            value = getattr(config, name)
            if not 0 <= value <= 1:
                raise InputError(f"boundaries.{name}", str(value), "a number from 0 to 1",
                                 f"{getattr(type(config), name)} is usual")

    def full_size_loss(self, prediction: Float[Tensor, "b 1 h w"], target: Float[Tensor, "b h w"],
                       valid: Bool[Tensor, "b h w"]) -> Loss:
        """Weighted cross entropy, summed over valid pixels."""
        return Loss(weighted_cross_entropy(prediction, target, valid, self.config.weight), valid.sum())

    def move(self, target: Float[Tensor, "h w"], valid: Bool[Tensor, "h w"],
             geometry: Geometry) -> tuple[Tensor, Bool[Tensor, "h2 w2"]]:
        """Like other dense labels, but lines stay connected when the image shrinks: a pixel of the result is a boundary
        if its cell contains one, whereas nearest neighbor would leave dashed lines."""
        rows, columns = (math.ceil(w / s) for w, s in zip(geometry.window[2:], geometry.size, strict=True))
        if max(rows, columns) > 1:
            above, left = rows // 2, columns // 2
            padded = F.pad(target[None], (left, columns - 1 - left, above, rows - 1 - above))
            # First down the columns, then along the rows: the same maximum from rows + columns pixels.
            target = F.max_pool2d(F.max_pool2d(padded, (rows, 1), stride=1), (1, columns), stride=1)[0]
        return super().move(target, valid, geometry)

    def metric(self) -> Metric:
        return BoundaryF(self.config.threshold, self.config.tolerance)

    def final_metric(self) -> FinalMetric | None:
        if not self.config.benchmark:
            return None
        from polyptych.metrics.boundary_scores import BoundaryScores  # compiles for a second, which other tasks save

        return BoundaryScores(self.config.benchmark)

    def paint(self, decoded: Float[Tensor, "h w"],
              image: UInt8[np.ndarray, "hi wi 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """A drawing: dark lines on white."""
        return 255 - super().paint(decoded, image)

    def legend(self) -> Legend:
        return scale_legend(["0%", "100%"], lambda share: gray(1 - share))
