"""Non-maximum suppression of a soft boundary map, as SEISM does before it thresholds.

Source: Pont-Tuset and Marques, TPAMI 2016 (SEISM); the filter is that of Dollar and Zitnick, TPAMI 2015
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy import ndimage

_TRIANGLE = np.array([1, 2, 3, 4, 5, 4, 3, 2, 1]) / 25
_MARGIN = 1.01  # a pixel survives neighbors up to 1% stronger
_FRAME = 5  # width of the damped frame, pixels


def suppress(strength: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Keep a pixel only if it is a maximum across the line through it, and damp a frame of five pixels.

    The direction across a line comes from second derivatives of the smoothed map. Neighbors lie one pixel away in
    that direction and are sampled bilinearly. Where the map does not change at all along x, the direction is undefined
    and nothing is suppressed, as in the original; real predictions are never that uniform.

    Args:
        strength: probabilities of a boundary, 0 to 1; at least 2x2 pixels.
    """
    strength = strength.astype(np.float64)
    angle = _across(strength)
    y, x = np.indices(strength.shape)
    cosine, sine = np.cos(angle), np.sin(angle)
    peak = np.ones(strength.shape, bool)
    for step in (-1, 1):
        peak &= _MARGIN * strength >= _sample(strength, y + step * sine, x + step * cosine)
    return np.where(peak, strength, 0) * _damping(strength.shape[0])[:, None] * _damping(strength.shape[1])


def _across(strength: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Direction across the lines, radians in [0, pi), x to the right and y down."""
    smooth = strength
    for axis in (0, 1):
        smooth = ndimage.convolve1d(smooth, _TRIANGLE, axis=axis, mode="reflect")
    dy, dx = np.gradient(smooth)
    dxy, dxx = np.gradient(dx)
    dyy = np.gradient(dy, axis=0)
    return np.mod(np.arctan(dyy * np.sign(-dxy) / (dxx + 1e-5)), np.pi)


def _sample(strength: Float[np.ndarray, "h w"], y: Float[np.ndarray, "h w"],
            x: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
    """Bilinear interpolation; positions outside are clamped to just inside the last pixel."""
    y, x = (np.clip(p, 0, size - 1.001) for p, size in zip((y, x), strength.shape, strict=True))
    top, left = y.astype(int), x.astype(int)
    y, x = y - top, x - left
    return ((1 - y) * ((1 - x) * strength[top, left] + x * strength[top, left + 1])
            + y * ((1 - x) * strength[top + 1, left] + x * strength[top + 1, left + 1]))


def _damping(size: int) -> Float[np.ndarray, " n"]:
    """Factors 0, 1/5, ..., 4/5 from either end; both apply where they overlap in a tiny map."""
    factors = np.ones(size)
    for k in range(min(_FRAME, size)):
        factors[k] *= k / _FRAME
        factors[size - 1 - k] *= k / _FRAME
    return factors
