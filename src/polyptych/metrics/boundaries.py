"""Fast boundary F-measure with a pixel tolerance, for monitoring training (not odsF)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from polyptych.metrics._base import Metric, ratio


class BoundaryF(Metric):
    """F-measure of a boundary map at one threshold, in percent, computed on the device in milliseconds.

    A predicted boundary pixel is right if a true one lies within the tolerance; a true one is found if a
    predicted one does. Counts add up over all images; ``precision`` and ``recall`` are their shares and ``F``
    is their harmonic mean.

    **This is not the odsF of the papers** (Martin, Fowlkes, Malik, PAMI 2004): predictions are not thinned,
    pixels are not matched one to one, the threshold is not optimized, and the neighborhood is a square. Thick
    predictions are penalized less. Use it to monitor training; take numbers for tables from the benchmark.

    Args:
        threshold: a probability above it is a boundary.
        tolerance: half the side of the square neighborhood, as a fraction of the diagonal of the label
            (0.0075 is six pixels at 480 x 640).
    """

    def __init__(self, threshold: float = 0.5, tolerance: float = 0.0075):
        super().__init__()
        self.threshold, self.tolerance = threshold, tolerance

    def update(self, prediction: Float[Tensor, "b h w"], target: Float[Tensor, "b h w"],
               valid: Bool[Tensor, "b h w"]) -> None:
        predicted = valid & (prediction.float() > self.threshold)
        true = valid & (target > 0.5)
        radius = int(self.tolerance * math.hypot(*valid.shape[-2:]))
        self.add(predicted=predicted.sum(), right=(predicted & dilate(true, radius)).sum(),
                 true=true.sum(), found=(true & dilate(predicted, radius)).sum())

    def compute(self) -> dict[str, float]:
        if not self.sums or not bool(self.sums["predicted"] + self.sums["true"]):
            return dict.fromkeys(("F", "precision", "recall"), float("nan"))
        precision = ratio(self.sums["right"], self.sums["predicted"])
        recall = ratio(self.sums["found"], self.sums["true"])
        # No hit at all, or one of the two sides empty: nothing was matched.
        harmonic = 2 * precision * recall / (precision + recall) if precision > 0 and recall > 0 else 0.0
        return {"F": 100 * harmonic, "precision": 100 * precision, "recall": 100 * recall}


def dilate(mask: Bool[Tensor, "b h w"], radius: int) -> Bool[Tensor, "b h w"]:
    """True within ``radius`` rows and columns of a True pixel."""
    if radius == 0 or not mask.numel():
        return mask
    size = 2 * radius + 1
    x = mask[:, None].float()
    x = F.max_pool2d(x, (size, 1), stride=1, padding=(radius, 0))
    return F.max_pool2d(x, (1, size), stride=1, padding=(0, radius))[:, 0] > 0
