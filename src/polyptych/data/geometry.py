"""How one sample is moved: rotate, crop (the window may reach outside), resize, mirror; the same for all labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torchvision.transforms.v2.functional as F
from jaxtyping import Bool
from torch import Tensor
from torchvision.transforms import InterpolationMode


@dataclass(frozen=True)
class Geometry:
    """A geometric move from a ``source`` frame to a frame of ``size`` (both h, w), in this order:

    1. rotate by ``angle`` degrees about the center, counter-clockwise on the screen;
    2. cut the ``window`` (top, left, height, width); what lies outside the frame becomes unlabeled;
    3. resize it to ``size``;
    4. mirror left-right if ``mirror``.

    ``zoom`` says how much nearer objects appear through step 2: a window of half the height and width, enlarged to
    the size of the whole frame, has zoom 2, and metric depth must be divided by it. A plain resize of the whole frame
    has zoom 1.
    """

    source: tuple[int, int]
    size: tuple[int, int]
    window: tuple[int, int, int, int]
    angle: float = 0.0
    mirror: bool = False
    zoom: float = 1.0

    @staticmethod
    def resize(source: tuple[int, int], size: tuple[int, int]) -> Geometry:
        """The whole frame, resized."""
        return Geometry(source, size, (0, 0, *source))

    def image(self, image: Tensor) -> Tensor:
        """(c h w) float or uint8, bilinear, antialiased where it shrinks; outside the frame zero."""
        return self._apply(image, InterpolationMode.BILINEAR)

    def labels(self, labels: Tensor) -> Tensor:
        """(h w) or (c h w) of any type, nearest neighbor, so that no value is invented; outside the frame zero."""
        flat = labels if labels.ndim == 3 else labels[None]
        boolean = flat.dtype == torch.bool
        moved = self._apply(flat.to(torch.uint8) if boolean else flat, InterpolationMode.NEAREST)
        moved = moved.bool() if boolean else moved
        return moved if labels.ndim == 3 else moved[0]

    def inside(self) -> Bool[Tensor, "h w"]:
        """True where the moved frame shows something of the source."""
        return self.labels(torch.ones(self.source, dtype=torch.bool))

    def points(self, points: Tensor) -> Tensor:
        """Move (..., 2) float points (x, y); pixel centers have integer coordinates."""
        x, y = points.unbind(-1)
        height, width = self.source
        if self.angle:
            cx, cy, a = (width - 1) / 2, (height - 1) / 2, math.radians(self.angle)
            # y points down, so counter-clockwise on the screen is this way round.
            x, y = (cx + (x - cx) * math.cos(a) + (y - cy) * math.sin(a),
                    cy - (x - cx) * math.sin(a) + (y - cy) * math.cos(a))
        top, left, h, w = self.window
        x = (x - left + 0.5) * self.size[1] / w - 0.5
        y = (y - top + 0.5) * self.size[0] / h - 0.5
        if self.mirror:
            x = self.size[1] - 1 - x
        return torch.stack([x, y], -1)

    def _apply(self, x: Tensor, mode: InterpolationMode) -> Tensor:
        if self.angle:
            x = F.rotate(x, self.angle, interpolation=mode)
        if self.window != (0, 0, *self.source):
            x = F.crop(x, *self.window)
        if tuple(x.shape[-2:]) != tuple(self.size):
            exact = InterpolationMode.NEAREST_EXACT if mode is InterpolationMode.NEAREST else mode
            x = F.resize(x, list(self.size), interpolation=exact, antialias=mode is InterpolationMode.BILINEAR)
        return F.horizontal_flip(x) if self.mirror else x
