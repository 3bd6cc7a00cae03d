"""Base of boundaries and saliency: a yes-or-no label with a probability for every pixel."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from polyptych.tasks._base import Task, Trivial, fault_of
from polyptych.tasks._pictures import UNLABELLED, Legend, Stored, gray, scale_legend, stored, to_bytes
from polyptych.types import Likelihood


class BinaryMap(Task):
    """Prediction: one channel of logits. Target: float (h w) in [0, 1], positive above 0.5. Decoded form:
    float (h w), probability of a positive."""

    channels = 1
    perfect: ClassVar[float] = 100.0
    likelihood: Likelihood = "categorical"
    tint: ClassVar[tuple[int, int, int]] = (255, 190, 0)  # of the overlay on an image

    def decode(self, prediction: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b h w"]:
        """The probability."""
        return prediction[:, 0].sigmoid()

    @property
    def meaning(self) -> str:
        return "a logit; its sigmoid is the probability"

    def trivial(self) -> Trivial:
        return AlwaysPositive()

    def paint(self, decoded: Float[Tensor, "h w"],
              image: UInt8[np.ndarray, "hi wi 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Positive is white."""
        return gray(decoded.float().cpu().numpy())

    @property
    def unit(self) -> str:
        return "probability"

    def at(self, decoded: Float[Tensor, "h w"], x: int, y: int) -> str:
        return f"{100 * float(decoded[y, x]):.0f}%"

    def legend(self) -> Legend:
        return scale_legend(["0%", "100%"], gray)

    def layer(self, decoded: Float[Tensor, "h w"],
              image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 4"]:
        """A single color; the more probable, the more opaque."""
        alpha = to_bytes(decoded.float().cpu().numpy())
        return np.dstack([np.broadcast_to(np.array(self.tint, np.uint8), (*alpha.shape, 3)), alpha])

    def layer_legend(self) -> Legend:
        """From a gray that stands for the image to the color of the overlay."""
        return scale_legend(["0%", "100%"], lambda share: to_bytes(
            (share[:, None] * np.array(self.tint) + (1 - share[:, None]) * UNLABELLED) / 255))

    def stored(self, decoded: Float[Tensor, "h w"]) -> Stored:
        return stored(65535 * decoded.float().cpu().numpy(), "probability in 1/65535")

    def to_mean(self, prediction: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
        """The probability."""
        return prediction.sigmoid()

    def from_mean(self, mean: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
        """The logit of the mean, kept finite so that it can be resized."""
        return mean.logit(eps=1e-7)

    def fault(self, target: Float[Tensor, "h w"], valid: Bool[Tensor, "h w"]) -> str | None:
        wrong = valid & ~((target >= 0) & (target <= 1))  # NaN fails the comparisons
        return fault_of(wrong, target, "value", "values lie in [0, 1]")


def weighted_cross_entropy(logits: Float[Tensor, "b 1 h w"], target: Float[Tensor, "b h w"],
                           valid: Bool[Tensor, "b h w"],
                           weight: float | Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Sum over valid pixels of -[w y log s(x) + (1-w) (1-y) log(1 - s(x))], labels binarized at 0.5."""
    x = torch.where(valid, logits[:, 0], 0)
    # -log s(x) = softplus(-x), which neither overflows nor loses precision for small probabilities.
    loss = torch.where(target > 0.5, weight * F.softplus(-x), (1 - weight) * F.softplus(x))
    return torch.where(valid, loss, 0).sum()


class AlwaysPositive(Trivial):
    """Everything positive: the constant with the best F-measure and IoU, whatever the labels are."""

    def update(self, target: Float[Tensor, "h w"], valid: Bool[Tensor, "h w"]) -> None:
        """Nothing to learn."""

    def prediction(self, size: tuple[int, int]) -> Float[Tensor, "1 1 h w"]:
        return torch.full((1, 1, *size), 10.0)
