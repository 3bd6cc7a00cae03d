"""Deformable convolution: every tap of the kernel samples at its own offset, with subpixel precision.

Source: Dai, Qi, Xiong, Li, Zhang, Hu, Wei, ICCV 2017, arXiv 1703.06211 (offsets); Zhu, Hu, Lin, Dai, CVPR 2019, arXiv
1811.11168 (the mask)
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.extension import _has_ops
from torchvision.ops import deform_conv2d

from polyptych.errors import InputError
from polyptych.ops import exporting

Method = Literal["auto", "compiled", "plain"]
OUTSIDE = 1e9  # position outside of any map


def deformable_convolution(x: Float[Tensor, "b c h w"], offset: Float[Tensor, "b o h2 w2"],
                           weight: Float[Tensor, "d e kh kw"], bias: Float[Tensor, " d"] | None = None,
                           mask: Float[Tensor, "b m h2 w2"] | None = None, *, stride: int = 1, padding: int = 0,
                           dilation: int = 1, method: Method = "auto") -> Float[Tensor, "b d h2 w2"]:
    """A convolution whose tap k at output position p reads ``x`` at  stride p - padding + dilation k + offset(p, k),
    bilinearly, with zeros outside the image, times ``mask(p, k)``.

    Args:
        offset: (dy, dx) in pixels for every tap of every offset group, in torchvision's order: o = 2 g kh kw, and
            channel 2 (group kh kw + tap) is a dy. The channels of ``x`` are split evenly among the g groups.
        weight: e = c / groups of the convolution, as in ``conv2d``.
        mask: one factor per tap and offset group, m = g kh kw.
        method: ``compiled`` is torchvision's operator; ``plain`` gathers the four neighbors of every sampling position
            with standard tensor operations, which is exact and can be exported. ``auto`` is the first if it exists and
            nothing is being exported. A position that is not finite reads zero.

    Raises:
        InputError: shapes that do not fit each other.
    """
    taps = weight.shape[2] * weight.shape[3]
    groups = offset.shape[1] // (2 * taps)
    if offset.shape[1] != 2 * taps * groups or not groups or x.shape[1] % groups or x.shape[1] % weight.shape[1]:
        raise InputError("deformable_convolution", f"{offset.shape[1]} offset channels for {x.shape[1]} channels and "
                         f"{taps} taps", "2 x taps x groups offset channels, whose groups divide the channels",
                         "pass offsets with that many channels")
    if not exporting():
        rows, columns = ((n + 2 * padding - dilation * (k - 1) - 1) // stride + 1
                         for n, k in zip(x.shape[2:], weight.shape[2:], strict=True))
        if tuple(offset.shape[2:]) != (rows, columns):
            raise InputError("deformable_convolution", f"offsets of {offset.shape[2]}x{offset.shape[3]}",
                             f"the size of the result, {rows}x{columns}",
                             "resize the offsets")
    if mask is not None and mask.shape[1] != taps * groups:
        raise InputError("deformable_convolution", f"{mask.shape[1]} mask channels", f"{taps * groups}",
                         "pass a mask with that many channels")
    if method == "compiled" or (method == "auto" and has_kernels(x.device.type) and not exporting()):
        # torchvision needs all inputs in one type, and has no kernels for bfloat16.
        kind = torch.promote_types(x.dtype, torch.float32)
        places = offset.to(kind).nan_to_num(nan=OUTSIDE, posinf=OUTSIDE, neginf=-OUTSIDE)  # or they are read anywhere
        y = deform_conv2d(x.to(kind), places, weight.to(kind), None if bias is None else bias.to(kind), stride,
                          padding, dilation, None if mask is None else mask.to(kind))
        return y.to(x.dtype)
    sampled = _sample(x, offset, weight.shape[2], weight.shape[3], stride, padding, dilation)
    if mask is not None:
        b, _, height, width = offset.shape
        factors = mask.view(b, groups, 1, taps, height, width).expand(-1, -1, x.shape[1] // groups, -1, -1, -1)
        sampled = sampled * factors.reshape(b, x.shape[1], taps, height, width)
    return _combine(sampled, weight.to(sampled.dtype), bias).to(x.dtype)


@cache
def has_kernels(kind: str) -> bool:
    """Whether torchvision has forward and backward kernels for such a device: not always on MPS and XPU, and not on
    CUDA if it was built for the CPU."""
    return _has_ops() and all(
        torch._C._dispatch_has_kernel_for_dispatch_key(f"torchvision::{name}", kind.upper())
        for name in ("deform_conv2d", "_deform_conv2d_backward"))


def _sample(x: Tensor, offset: Tensor, kernel_height: int, kernel_width: int, stride: int, padding: int,
            dilation: int) -> Float[Tensor, "b c k h2 w2"]:
    """The samples of every tap at every output position, in float32 at least, because positions need the precision."""
    b, channels, h, w = x.shape
    _, _, height, width = offset.shape
    taps = kernel_height * kernel_width
    groups = offset.shape[1] // (2 * taps)
    kind = torch.promote_types(x.dtype, torch.float32)
    shifts = offset.to(kind).view(b, groups, taps, 2, height, width)
    rows, columns = (torch.arange(n, device=x.device, dtype=kind) for n in (kernel_height, kernel_width))
    tap_y = (rows * dilation)[:, None].expand(-1, kernel_width).reshape(taps, 1, 1)
    tap_x = (columns * dilation)[None].expand(kernel_height, -1).reshape(taps, 1, 1)
    grid_y = (torch.arange(height, device=x.device, dtype=kind) * stride - padding)[:, None]
    grid_x = (torch.arange(width, device=x.device, dtype=kind) * stride - padding)[None]
    y, z = shifts[:, :, :, 0] + tap_y + grid_y, shifts[:, :, :, 1] + tap_x + grid_x
    # Only the interpolation weights carry a gradient to the offsets; the choice of neighbors is piecewise constant.
    top, left = y.floor(), z.floor()
    down, right = y - top, z - left  # interpolation weights of the lower and right neighbors
    flat = x.to(kind).reshape(b, groups, channels // groups, h * w)

    def neighbor(rows: Tensor, columns: Tensor, share: Tensor) -> Tensor:
        inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)  # False for NaN
        place = torch.where(inside, rows * w + columns, 0).long()  # gather checks every index, even unused ones
        index = place.reshape(b, groups, 1, -1).expand(-1, -1, channels // groups, -1)
        return flat.gather(3, index) * torch.where(inside, share, 0).reshape(b, groups, 1, -1)

    sampled = (neighbor(top, left, (1 - down) * (1 - right)) + neighbor(top, left + 1, (1 - down) * right)
               + neighbor(top + 1, left, down * (1 - right)) + neighbor(top + 1, left + 1, down * right))
    return sampled.view(b, channels, taps, height, width)


def _combine(sampled: Float[Tensor, "b c k h w"], weight: Float[Tensor, "d e kh kw"],
             bias: Tensor | None) -> Float[Tensor, "b d h w"]:
    """Apply the weights, group by group, as a 1x1 convolution over all taps."""
    b, channels, taps, height, width = sampled.shape
    d, e = weight.shape[:2]
    stacked = sampled.reshape(b, channels * taps, height, width)
    kernel = weight.reshape(d, e * taps, 1, 1)
    return torch.nn.functional.conv2d(stacked, kernel, None if bias is None else bias.to(stacked.dtype),
                                      groups=channels // e)
