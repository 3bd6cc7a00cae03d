"""Accuracy of image classification: how often the label is the most probable class, or among the top five."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polyptych.metrics._base import Metric, ratio

FIRST = 5


class Accuracy(Metric):
    """``top1`` and ``top5``: share of the images, in percent, whose label is among the one or five classes with the
    highest scores. On ties the lower class id wins, so that a constant score is not always right. With five
    classes or fewer ``top5`` is always 100.

    An image counts if it has any valid pixel and a label from 0 to the number of classes - 1.
    """

    def update(self, prediction: Float[Tensor, "b k"], target: Int[Tensor, " b"], valid: Bool[Tensor, "b h w"]) -> None:
        """Add a batch of scores, one row per image."""
        classes = prediction.shape[1]
        counted = valid.flatten(1).any(1) & (target >= 0) & (target < classes)
        label = torch.where(counted, target, 0)[:, None]
        score = prediction.gather(1, label)
        ahead = (prediction > score) | ((prediction == score) & (torch.arange(classes, device=label.device) < label))
        rank = ahead.sum(1)
        self.add(top1=(counted & (rank < 1)).sum(), top5=(counted & (rank < FIRST)).sum(), count=counted.sum())

    def compute(self) -> dict[str, float]:
        if not self.sums:
            return {"top1": float("nan"), "top5": float("nan")}
        return {name: 100 * ratio(self.sums[name], self.sums["count"]) for name in ("top1", "top5")}
