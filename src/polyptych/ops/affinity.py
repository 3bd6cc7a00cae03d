"""Cross-task affinity (EMA-Net) and affinity diffusion (PAP-Net) without an affinity matrix.

Both compare every position of an image with every other, and sum values weighted by these affinities. There is no
nonlinearity between comparison and sum, so the order can be exchanged: the result is the same, and time and memory are
linear in the number of positions. docs/affinity.md explains the mathematics and the costs.

Source: Sinodinos, Armanfard, WACV 2025, arXiv 2401.11124 (EMA-Net, CTAL)
Source: Zhang, Cui, Xu, Yan, Sebe, Yang, CVPR 2019, arXiv 1906.03525 (PAP-Net)
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from polyptych.ops import _affinity_plain as plain
from polyptych.ops import exporting
from polyptych.ops._affinity_autograd import Gather

SMALLEST_LENGTH = 1e-6  # of a feature vector; shorter ones are not scaled to unit length (the gradient would explode)

Method = Literal["auto", "linear", "streamed", "materialized"]


def cross_task_affinity(
        features: Float[Tensor, "b s c h w"], values: Float[Tensor, "b t d h w"],
        kernel: Float[Tensor, "t n s k k"] | Float[Tensor, "n s k k"], bias: Float[Tensor, "t n"] | Float[Tensor, " n"],
        *, method: Method = "auto") -> Float[Tensor, "b t d h w"]:
    """Values of all positions p, weighted for each position i by its similarity to the neighborhood of p in the
    features of all tasks s.

        A_s[i, p] = g_s(i) . g_s(p)                                             affinity of two positions
        M_t[i, p] = bias_t(i) + sum_s sum_d kernel_t[i, s, d] A_s[i, p + d]     zero outside the image
        Y_t(:, i) = sum_p V_t(:, p) M_t[i, p]

    with g the features, V the values, and d the k x k offsets around p, in the order of ``conv2d``. There are n = h w
    positions, row by row.

    Sums are float32 at least. The factors of matrix products are bfloat16 on CUDA under autocast to bfloat16 (or for
    bfloat16 inputs). Otherwise they are float32, also for float16, whose range sums over positions exceed.

    Memory is O(n) in the backward pass too, except for ``materialized``. Second derivatives are supported.
    ``torch.export`` and ONNX get the linear form in standard operators, unless ``materialized`` is requested.

    Args:
        features: features of each source task, which the caller has scaled to unit length over c at every position.
        values: values of each target task. Targets and sources may differ in number and in channels.
        kernel: kernels of each target task, or one for all (the published code); k is odd.
        bias: bias of each target task, or one for all.
        method: ``linear`` costs O(n s t k^2 c d), ``streamed`` O(n^2 (s c + t d + s k^2 t)) without ever storing n x n;
            ``auto`` takes the one with fewer :func:`operations`. ``materialized`` is the paper's formula written
            plainly, with O(n^2) memory: the reference.

    Returns:
        Y, in the precision of ``values``.

    Raises:
        ValueError: an even k.
    """
    (s, c), (t, d) = features.shape[1:3], values.shape[1:3]
    n, k = kernel.shape[-4], kernel.shape[-1]
    if k % 2 == 0:
        raise ValueError(f"kernel of {k} x {k}: the size must be odd")
    kernel = kernel if kernel.ndim == 5 else kernel[None]
    if method == "auto":
        cost = operations(n, sources=s, targets=t, channels=c, value_channels=d, k=k)
        method = "linear" if cost["linear"] <= cost["streamed"] else "streamed"
    dtype, result = _precision(features, values, kernel, bias), values.dtype
    with torch.autocast(features.device.type, enabled=False):
        values = values.to(dtype)
        factors = features.to(dtype), values, kernel.to(dtype)
        if method == "materialized":
            gathered = plain.materialized(*factors)
        else:
            gathered = plain.linear(*factors) if exporting() else Gather.apply(*factors, method)
        exact = torch.promote_types(dtype, torch.float32)
        constant = values.sum((3, 4), dtype=exact)[..., None] * bias.to(exact).unsqueeze(-2)
        return (gathered + constant.view_as(gathered)).to(result)


def operations(positions: int, *, sources: int, targets: int, channels: int, value_channels: int, k: int
               ) -> dict[str, int]:
    """The cost model behind ``method="auto"``: multiply-adds of a forward pass on one sample.

    Those of large matrix products count once. ``streamed`` also moves data: every affinity is copied into the k^2
    neighborhoods that contain it, and each copy takes the time of :data:`NEIGHBOR` multiply-adds.
    """
    window = sources * k**2
    return {"linear": 2 * positions * window * channels * targets * value_channels,
            "streamed": positions**2 * (sources * channels + targets * value_channels + NEIGHBOR * window)}


NEIGHBOR = 100
"""Measured on a CPU, gradients included: ``python benchmarks/affinity.py --calibrate`` (68 to 115 for 1 to 5 tasks)."""


def affinity_diffusion(
        features: Float[Tensor, "b s c h w"], values: Float[Tensor, "b d h w"], *, weights: Float[Tensor, " s"]
        ) -> Float[Tensor, "b d h w"]:
    """Replace the value at each position by the average over all positions, weighted by affinity: D^-1 A X.

    A[i, p] is (1 + cosine of the features at i and p) / 2, and D the sums of its rows. The average of source s, whose
    rows sum to one, counts ``weights[s]``: sum_s weights_s D_s^-1 A_s X. Linear in the number of positions, because
    with unit vectors F, A X = F^T (F X^T) and D = F^T (F 1), where the inner product is taken first. Computed in
    float32 at least.

    Args:
        features: features of the sources, of any length, including zero (vectors shorter than 1e-6 are not scaled to
            unit length).
        values: X.
        weights: weights of the sources.
    """
    dtype, result = torch.promote_types(torch.promote_types(features.dtype, values.dtype), torch.float32), values.dtype
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(features.to(dtype).flatten(-2), dim=-2, eps=SMALLEST_LENGTH)
        # (1 + cosine) / 2 is an inner product of vectors with one more coordinate.
        unit = torch.cat([unit, torch.ones_like(unit[:, :, :1])], dim=2) / 2**0.5
        row_sums = torch.einsum("bscn,bsc->bsn", unit, unit.sum(3))
        # D^-1 and the weights, applied to one of the two factors
        rows = unit * (weights.to(dtype)[:, None] / row_sums)[:, :, None]
        inner = torch.einsum("bscn,bdn->bscd", unit, values.to(dtype).flatten(2))
        return torch.einsum("bscn,bscd->bdn", rows, inner).view_as(values).to(result)


def _precision(*inputs: Tensor) -> torch.dtype:
    """Precision of the factors of matrix products: bfloat16 if its products can be accumulated in float32."""
    device = inputs[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs[0].dtype
    if not torch.is_autocast_enabled(device):
        for other in inputs[1:]:
            dtype = torch.promote_types(dtype, other.dtype)
    sums_in_float32 = device == "cuda" and hasattr(torch.ops.aten.bmm, "dtype")
    return dtype if dtype == torch.bfloat16 and sums_in_float32 else torch.promote_types(dtype, torch.float32)
