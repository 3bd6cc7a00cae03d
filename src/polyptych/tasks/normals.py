"""Surface normals: which way every pixel faces."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from polyptych import devices
from polyptych.data.geometry import Geometry
from polyptych.metrics._accumulation import Accumulation
from polyptych.metrics._base import Metric, accumulated
from polyptych.metrics.angles import AngularError, unit_vectors
from polyptych.tasks._base import Task, Trivial, fault_of
from polyptych.tasks._pictures import Legend, rgb, to_bytes
from polyptych.types import Likelihood, Loss

DIRECTIONS = {"left": (-1, 0, 0), "right": (1, 0, 0), "up": (0, -1, 0), "down": (0, 1, 0), "to the camera": (0, 0, -1)}
"""Which way a surface faces, as a vector."""


class Normals(Task):
    """Surface normals. Target and decoded form: float (3 h w) unit vectors in the camera's frame, x right, y
    down, z forward, so that a surface facing the camera has (0, 0, -1). The raw prediction is a vector of
    any length.

    The loss compares the normalized prediction p with the label y, per valid pixel:

    - ``l1``: \\|p - y\\| summed over the three channels / 3 (ASTMT, survey; the standard weight 10 belongs to
      it);
    - ``l1_pixel``: without the third, three times ``l1`` (ATRC, InvPT, Auto-Lambda);
    - ``cosine``: 1 - p . y (MTAN and the work that builds on its data).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Task.Config):
        loss: Literal["l1", "l1_pixel", "cosine"] = "l1"
        """Loss per pixel: mean over the channels, sum over the channels, or 1 - cosine."""
        accumulation: Accumulation = "global"
        """Angles over all pixels of the set, or the mean over images or batches (MTAN, CAGrad)."""

    channels = 3
    headline: ClassVar[str] = "mean"
    higher_is_better: ClassVar[dict[str, bool]] = {
        name: name.startswith("within") for name in AngularError.names}
    perfect: ClassVar[float] = 0.0
    standard_weight: float = 10.0
    # Also for 1 - cosine: a narrow von Mises-Fisher density on the sphere has the same two constants.
    likelihood: Likelihood = "laplace"
    config: Config

    def full_size_loss(self, prediction: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"],
                       valid: Bool[Tensor, "b h w"]) -> Loss:
        """The chosen loss, summed over valid pixels."""
        mask = valid[:, None]
        # Masked before it is normalized, so that values at invalid pixels cannot reach the gradient.
        unit = unit_vectors(torch.where(mask, prediction, 1))
        label = torch.where(mask, target, 0)
        if self.config.loss == "cosine":
            total = torch.where(valid, 1 - (unit * label).sum(1), 0).sum()
        else:
            total = torch.where(mask, (unit - label).abs(), 0).sum()
        return Loss(total / 3 if self.config.loss == "l1" else total, valid.sum())

    def decode(self, prediction: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Unit vectors, in float32."""
        return unit_vectors(prediction.float())

    @property
    def meaning(self) -> str:
        return "a vector, x right, y down, z forward; divide it by its length"

    def metric(self) -> Metric:
        """See :class:`polyptych.metrics.angles.AngularError`."""
        return accumulated(AngularError, self.config.accumulation)

    def trivial(self) -> Trivial:
        return MeanDirection()

    def paint(self, decoded: Float[Tensor, "3 h w"],
              image: UInt8[np.ndarray, "hi wi 3"]) -> UInt8[np.ndarray, "h w 3"]:
        """Red right, green up, blue toward the camera: the field's usual picture, in which a wall that
        faces the camera is light blue and a floor is light green."""
        return _colors(self.array(decoded.float()))

    @property
    def unit(self) -> str:
        return "unit vector (x right, y down, z forward)"

    def array(self, decoded: Float[Tensor, "3 h w"]) -> Float[np.ndarray, "h w 3"]:
        """Unit vectors, coordinates last."""
        return np.ascontiguousarray(decoded.cpu().numpy().transpose(1, 2, 0))

    def at(self, decoded: Float[Tensor, "3 h w"], x: int, y: int) -> str:
        return "({:.2f}, {:.2f}, {:.2f})".format(*(value + 0.0 for value in decoded[:, y, x].tolist()))

    def legend(self) -> Legend:
        return Legend(tuple((name, rgb(_colors(np.array(vector, np.float32)))) for name, vector in DIRECTIONS.items()))

    def directions(self, decoded: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 h w"]:
        return decoded

    def mirrored(self, prediction: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """A flip negates x."""
        return prediction.flip(-1) * devices.sent([-1, 1, 1], prediction.device, prediction.dtype)[:, None, None]

    def to_mean(self, prediction: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Unit vectors; decoding normalizes their mean again."""
        return unit_vectors(prediction)

    def move(self, target: Float[Tensor, "3 h w"], valid: Bool[Tensor, "h w"],
             geometry: Geometry) -> tuple[Tensor, Bool[Tensor, "_ _"]]:
        """Nearest neighbor; vectors rotate with the image, and a flip negates x. A zoom does not change directions."""
        target, valid = super().move(target, valid, geometry)
        x, y, z = target
        if geometry.angle:
            a = math.radians(geometry.angle)  # counter-clockwise on the screen, where y points down
            x, y = x * math.cos(a) + y * math.sin(a), y * math.cos(a) - x * math.sin(a)
        return torch.stack([-x if geometry.mirror else x, y, z]), valid

    def fault(self, target: Float[Tensor, "3 h w"], valid: Bool[Tensor, "h w"]) -> str | None:
        length = target.square().sum(0).sqrt()
        wrong = valid & ~((length >= 0.5) & (length <= 1.5))  # NaN and infinity fail the comparisons
        return fault_of(wrong, length, "a normal of length", "the length is 1")

    def empty(self, size: tuple[int, int]) -> Float[Tensor, "3 h w"]:
        return torch.zeros(3, *size)


def _colors(vectors: Float[np.ndarray, "*shape 3"]) -> UInt8[np.ndarray, "*shape 3"]:
    return to_bytes((vectors * np.array([1, -1, -1], np.float32) + 1) / 2)


class MeanDirection(Trivial):
    """The mean direction of the training pixels everywhere: the constant with the least mean 1 - cosine."""

    def __init__(self) -> None:
        self.sum = torch.zeros(3, dtype=torch.float64)

    def update(self, target: Float[Tensor, "3 h w"], valid: Bool[Tensor, "h w"]) -> None:
        self.sum += target[:, valid].double().sum(1).cpu()

    def prediction(self, size: tuple[int, int]) -> Float[Tensor, "1 3 h w"]:
        direction = self.sum if bool(self.sum.any()) else torch.tensor([0.0, 0.0, -1.0]).double()
        return F.normalize(direction, dim=0).float()[None, :, None, None].expand(1, 3, *size)
