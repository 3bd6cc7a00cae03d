"""Deformable 1x1 convolution: every position samples at an offset of its own, with subpixel precision.

Source: Dai, Qi, Xiong, Li, Zhang, Hu, Wei, ICCV 2017, arXiv 1703.06211
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torchvision.extension import _has_ops
from torchvision.ops import deform_conv2d

from polyptych.ops import exporting

Method = Literal["auto", "compiled", "plain"]
OUTSIDE = 1e9  # position outside of any map


def deformable_convolution(x: Float[Tensor, "b c h w"], offset: Float[Tensor, "b o h w"],
                           weight: Float[Tensor, "d c 1 1"], bias: Float[Tensor, " d"] | None = None, *,
                           method: Method = "auto") -> Float[Tensor, "b d h w"]:
    """A 1x1 convolution that reads ``x`` at p + offset(p) for every position p, bilinearly, with zeros outside the
    image.

    Args:
        offset: (dy, dx) in pixels for every offset group, o = 2 g. The channels of ``x`` are split evenly among the g
            groups.
        method: ``compiled`` is torchvision's operator; ``plain`` gathers the four neighbors of every sampling position
            with standard tensor operations, which is exact and can be exported. ``auto`` is the first if it exists and
            nothing is being exported. A position that is not finite reads zero.
    """
    kind = torch.promote_types(x.dtype, torch.float32)  # torchvision has no kernels for bfloat16
    weight, bias = weight.to(kind), None if bias is None else bias.to(kind)
    if method == "compiled" or (method == "auto" and has_kernels(x.device.type) and not exporting()):
        places = offset.to(kind).nan_to_num(nan=OUTSIDE, posinf=OUTSIDE, neginf=-OUTSIDE)  # or they are read anywhere
        return deform_conv2d(x.to(kind), places, weight, bias).to(x.dtype)
    return F.conv2d(_sample(x, offset), weight, bias).to(x.dtype)


@cache
def has_kernels(kind: str) -> bool:
    """Whether torchvision has forward and backward kernels for such a device: not always on MPS and XPU, and not on
    CUDA if it was built for the CPU."""
    return _has_ops() and all(
        torch._C._dispatch_has_kernel_for_dispatch_key(f"torchvision::{name}", kind.upper())
        for name in ("deform_conv2d", "_deform_conv2d_backward"))


def _sample(x: Float[Tensor, "b c h w"], offset: Float[Tensor, "b o h w"]) -> Float[Tensor, "b c h w"]:
    """The samples at every output position, in float32 at least, because positions need the precision."""
    b, channels, h, w = x.shape
    _, _, height, width = offset.shape
    groups = offset.shape[1] // 2
    kind = torch.promote_types(x.dtype, torch.float32)
    shifts = offset.to(kind).view(b, groups, 2, height, width)
    y = shifts[:, :, 0] + torch.arange(height, device=x.device, dtype=kind)[:, None]
    z = shifts[:, :, 1] + torch.arange(width, device=x.device, dtype=kind)[None]
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
    return sampled.view(b, channels, height, width)
