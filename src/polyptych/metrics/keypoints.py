"""Keypoint error: distance of a heat map's peak to the nearest keypoint of its type."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from polyptych.metrics._base import Metric, ratio


class KeypointError(Metric):
    """Distance between the peak of a type's heat map and the nearest visible keypoint of this type.

    Types without a visible keypoint in an image do not count there. ``error`` is the mean distance as a
    percentage of the image's diagonal: this is GradNorm's measure (Chen et al., ICML 2018, arXiv 1711.02257) if a type
    occurs once per image. ``PCK`` is the percentage of peaks within 5% of the diagonal. With several persons in an
    image, a peak is right if it is near any one of them; whether all are found is not measured.
    """

    def __init__(self, limit: float = 0.05):
        super().__init__()
        self.limit = limit

    def update(self, prediction: Float[Tensor, "b k h w"], target: Float[Tensor, "b p k 3"],
               valid: Bool[Tensor, "b h w"]) -> None:
        points, visible = visible_points(target, valid)
        offset = points - peaks(prediction, valid)[:, None]
        distance = offset.double().norm(dim=-1).masked_fill(~visible, math.inf)
        # The row of infinities lets amin work where no sample has a person.
        nobody = torch.full_like(prediction[:, None, :, 0, 0], math.inf, dtype=distance.dtype)
        nearest = torch.cat([distance, nobody], 1).amin(1)
        seen = visible.any(1)
        relative = torch.where(seen, nearest, 0) / math.hypot(*valid.shape[-2:])
        self.add(distance=relative.sum(), right=(seen & (relative <= self.limit)).sum(), count=seen.sum())

    def compute(self) -> dict[str, float]:
        if not self.sums:
            return {"error": float("nan"), "PCK": float("nan")}
        return {"error": 100 * ratio(self.sums["distance"], self.sums["count"]),
                "PCK": 100 * ratio(self.sums["right"], self.sums["count"])}


def peaks(heat: Float[Tensor, "b k h w"], valid: Bool[Tensor, "b h w"]) -> Int[Tensor, "b k 2"]:
    """x and y of the highest valid pixel of every map."""
    index = heat.masked_fill(~valid[:, None], -math.inf).flatten(2).argmax(2)
    width = heat.shape[-1]
    return torch.stack([index % width, index // width], -1)


def visible_points(target: Float[Tensor, "b p k 3"], valid: Bool[Tensor, "b h w"]
                   ) -> tuple[Float[Tensor, "b p k 2"], Bool[Tensor, "b p k"]]:
    """Coordinates (zero where invisible) and visibility. A keypoint counts as visible if its label says so,
    it lies in the frame, and the pixel under it is valid."""
    height, width = valid.shape[-2:]
    points = target[..., :2]
    pixel = (points + 0.5).floor()
    x, y = pixel.unbind(-1)
    # Comparisons with NaN are False, so points that are not finite drop out here.
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (target[..., 2] > 0.5)
    pixel = torch.where(inside[..., None], pixel, 0).long()
    index = (pixel[..., 1] * width + pixel[..., 0]).flatten(1)
    visible = inside & valid.flatten(1).gather(1, index).view_as(inside)
    return torch.where(visible[..., None], points, 0), visible
