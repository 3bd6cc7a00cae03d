"""Surface normals from depth: a plane through every pixel's surroundings, fitted in inverse depth.

Along the ray of a pixel with the slopes u = (x - cx) / fx and v = (y - cy) / fy, a plane has the inverse depth w = a u
+ b v + c: it is affine in the pixel's coordinates, however steep the plane, and (a, b, c) points along its normal. So
an ordinary linear least-squares fit is exact for planes, and the error of stereo and structured light is about uniform
in w, whereas in meters it grows with the square of the distance.

At depth edges a fit across both sides would be wrong. The first fit uses only pixels whose w is close to that of the
center; two more weight pixels by how well the previous plane explains them (Geman-McClure weights), so that the other
side of an edge or a crease loses its influence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import no_type_check

import numpy as np
from jaxtyping import Bool, Float, Float32

from polyptych.errors import InputError
from polyptych.native import native
from polyptych.types import Intrinsics

METHOD = "weighted least-squares plane in inverse depth, reweighted by residual (Geman-McClure)"


@dataclass(frozen=True)
class PlaneFit:
    """How the plane is fitted.

    Attributes:
        window: side of the square that a plane is fitted in, in pixels, odd. 21 is for 480x640: of four sizes it came
            nearest to reference normals of an NYUv2 frame (docs/data.md).
        stride: only every second (third, ...) row and column of the window is used: 2 takes a quarter of the time.
        edge: the first fit leaves out pixels whose inverse depth differs from the center's by more than this share.
        noise: scale of the inverse depth's error in 1/m; a pixel this far off the plane counts a quarter. 0.01 is
            about three times that of the first Kinect.
        passes: fits with weights after the first one.
        support: share of the window's pixels that must have depth and agree, or the normal is unknown.
    """

    window: int = 21
    stride: int = 2
    edge: float = 0.1
    noise: float = 0.01
    passes: int = 2
    support: float = 0.2

    def __post_init__(self) -> None:
        for name, good, needs in (("window", self.window >= 3 and self.window % 2 == 1, "an odd number from 3 on"),
                                  ("stride", 1 <= self.stride <= self.window // 2, "from 1 to half the window"),
                                  ("edge", self.edge > 0, "a positive share"), ("noise", self.noise > 0, "above 0"),
                                  ("passes", self.passes >= 0, "0 or more"),
                                  ("support", 0 < self.support <= 1, "a share above 0")):
            if not good:
                raise InputError(f"{name} of the plane fit", str(getattr(self, name)), needs, "change the value")


def normals_from_depth(depth: Float[np.ndarray, "h w"], valid: Bool[np.ndarray, "h w"], camera: Intrinsics,
                       fit: PlaneFit = PlaneFit()
                       ) -> tuple[Float32[np.ndarray, "3 h w"], Bool[np.ndarray, "h w"]]:
    """Unit normals toward the camera (x right, y down, z forward) and where they are known; zero elsewhere.

    Computed in float64.

    Args:
        depth: meters along the optical axis; arbitrary where not ``valid``.
        camera: for this resolution.
    """
    known = valid & np.isfinite(depth) & (depth > 0)
    inverse = np.where(known, 1 / np.where(known, depth, 1).astype(np.float64), 0.0)
    least = fit.support * (fit.window / fit.stride) ** 2
    # Compiled once for each combination of types: whole numbers and views of the caller would each take a second.
    numbers = map(float, (camera.fx, camera.fy, camera.cx, camera.cy))
    normals, found = _fit_planes(np.ascontiguousarray(inverse), np.ascontiguousarray(known), *numbers, fit.window // 2,
                                 fit.stride, float(fit.edge), float(fit.noise), fit.passes, float(least))
    return normals.astype(np.float32), found


@native
@no_type_check
def _fit_planes(inverse, known, fx, fy, cx, cy, reach, stride, edge, noise, passes, support):
    """Fit from ``inverse`` float64 (h w) and ``known`` bool (h w); returns float64 (3 h w) and bool (h w)."""
    height, width = inverse.shape
    normals = np.zeros((3, height, width))
    found = np.zeros((height, width), np.bool_)
    for y in range(height):
        for x in range(width):
            if not known[y, x]:
                continue
            center = inverse[y, x]
            # Relative to the center, in pixels: w = center + p dx + q dy + r.
            p, q, r, good = 0.0, 0.0, 0.0, True
            for turn in range(passes + 1):
                s = sx = sy = sxx = sxy = syy = se = sxe = sye = 0.0
                for j in range(max(y % stride, y - reach), min(height, y + reach + 1), stride):
                    for i in range(max(x % stride, x - reach), min(width, x + reach + 1), stride):
                        if not known[j, i]:
                            continue
                        dx, dy, e = float(i - x), float(j - y), inverse[j, i] - center
                        if turn == 0:
                            if abs(e) > edge * center:
                                continue
                            k = 1.0
                        else:
                            off = (e - p * dx - q * dy - r) / noise
                            k = 1 / (1 + off * off) ** 2
                        s += k
                        sx += k * dx
                        sy += k * dy
                        sxx += k * dx * dx
                        sxy += k * dx * dy
                        syy += k * dy * dy
                        se += k * e
                        sxe += k * dx * e
                        sye += k * dy * e
                if s < support:
                    good = False
                    break
                # About the weighted mean, two unknowns are left.
                mx, my, me = sx / s, sy / s, se / s
                vxx, vxy, vyy = sxx / s - mx * mx, sxy / s - mx * my, syy / s - my * my
                vxe, vye = sxe / s - mx * me, sye / s - my * me
                determinant = vxx * vyy - vxy * vxy
                if determinant < 0.01:  # the pixels lie on a line
                    good = False
                    break
                p = (vxe * vyy - vye * vxy) / determinant
                q = (vye * vxx - vxe * vxy) / determinant
                r = me - p * mx - q * my
            if not good:
                continue
            a, b = p * fx, q * fy
            c = center + r - p * (x - cx) - q * (y - cy)
            length = np.sqrt(a * a + b * b + c * c)
            # n . P = -Z w / length is negative, toward the camera, where the fitted w is positive.
            if length > 0 and center + r > 0:
                normals[0, y, x], normals[1, y, x], normals[2, y, x] = -a / length, -b / length, -c / length
                found[y, x] = True
    return normals, found
