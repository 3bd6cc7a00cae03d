"""Cross-task affinity in time and memory linear in the number of positions; see docs/affinity.md.

    Y_t[:, i] = sum_s sum_d K_t[i, s, d] L[t, s, d] g_s(:, i)        L[t, s, d] = sum_p V_t[:, p] g_s(:, p + d)^T

Why this is linear: nothing nonlinear is applied to the affinities, so the sum over positions p can be taken first. It
is L, which does not depend on i and has only t s k^2 c d entries. For every position, the products K_t[i, s, d] g_s(c,
i) form one row of a matrix U, and Y is the matrix product of U and L. U is computed block by block, and again in the
backward pass, because all of it would be k^2 times as large as the features.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.ops._affinity_grid import Grid, accumulate, blocks, product

# r kernels: one per task, or one for all. e columns share a kernel: the d channels of one task, or of all.


def lagged_correlations(grid: Grid, features: Float[Tensor, "b q sc"], values: Float[Tensor, "b p re"],
                        sources: int, kernels: int) -> Float[Tensor, "b r s kk c e"]:
    """L: one matrix product over all positions per offset."""
    b, c, e = features.shape[0], features.shape[2] // sources, values.shape[2] // kernels
    dtype = torch.promote_types(features.dtype, torch.float32)
    result = features.new_empty(b, kernels, sources, grid.k**2, c, e, dtype=dtype)
    # g(p + d) for all p is a run of consecutive rows of the padded features, so no shift is copied. Positions between
    # two lines of the image pair a feature with a value of zero and add nothing.
    for d, shift in enumerate(grid.shifts):
        lag = product(features[:, shift].transpose(1, 2), values)
        result[:, :, :, d] = lag.view(b, sources, c, kernels, e).permute(0, 3, 1, 2, 4)
    return result


def forward(grid: Grid, features: Float[Tensor, "b q sc"], values: Float[Tensor, "b p re"],
            kernel: Float[Tensor, "r p s kk"], correlations: Float[Tensor, "b r s kk c e"]
            ) -> Float[Tensor, "b p re"]:
    """Y, as rows of ``grid``."""
    kernels, _, sources, _ = kernel.shape
    flat = correlations.flatten(2, 4).to(features.dtype)
    here = _at_positions(grid, features, sources)
    result = torch.empty_like(values)
    columns = result.unflatten(2, (kernels, -1))
    # U is k^2 times as large as the features, so it is never stored whole.
    for samples, positions in blocks(grid, len(values), flat.shape[2], values.device):
        for r in range(kernels):
            weighted = _weighted(kernel[r, positions], here[samples, positions])
            columns[samples, positions, r] = product(weighted, flat[samples, r]).to(result.dtype)
    return result


def backward(grid: Grid, features: Float[Tensor, "b q sc"], values: Float[Tensor, "b p re"],
             kernel: Float[Tensor, "r p s kk"], correlations: Float[Tensor, "b r s kk c e"],
             gradient: Float[Tensor, "b p re"]
             ) -> tuple[Float[Tensor, "b q sc"], Float[Tensor, "b p re"], Float[Tensor, "r p s kk"]]:
    """Gradients of the three inputs, in the precision of the correlations."""
    kernels, _, sources, kk = kernel.shape
    dtype = correlations.dtype
    flat = correlations.flatten(2, 4).to(features.dtype)
    here = _at_positions(grid, features, sources)
    columns = gradient.unflatten(2, (kernels, -1))
    d_features, d_values = torch.zeros_like(features, dtype=dtype), torch.zeros_like(values, dtype=dtype)
    d_here = _at_positions(grid, d_features, sources)
    d_kernel, d_flat = torch.zeros_like(kernel, dtype=dtype), torch.zeros_like(flat, dtype=dtype)

    # Y = U L: dL = U' dY is summed over the blocks, and dU = dY L' splits into dK and dg within each block, because
    # every entry of U is an entry of K times one of g at the same position.
    for samples, positions in blocks(grid, len(values), flat.shape[2], values.device):
        at = here[samples, positions]  # (b p s c)
        for r in range(kernels):
            weights = kernel[r, positions]  # (p s kk)
            outgoing = columns[samples, positions, r]  # (b p e)
            accumulate(d_flat[samples, r], _weighted(weights, at).transpose(1, 2), outgoing)
            d_weighted = product(outgoing, flat[samples, r].transpose(1, 2))
            d_weighted = d_weighted.view(*at.shape[:3], kk, -1)
            d_here[samples, positions] += (weights.to(dtype)[..., None, :] @ d_weighted)[..., 0, :]
            d_kernel[r, positions] += d_weighted.mul_(at[..., None, :]).sum((0, 4))

    # Only now is dL complete, and L = sum_p V(p) g(p + d)' passes it on to V and, at the shifted positions, to g.
    d_lags = d_flat.to(features.dtype).view_as(correlations)
    for d, shift in enumerate(grid.shifts):
        d_lag = d_lags[:, :, :, d].permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)  # (b s*c r*e)
        accumulate(d_values, features[:, shift], d_lag)
        accumulate(d_features[:, shift], values, d_lag.transpose(1, 2))
    return d_features, d_values, d_kernel


def _at_positions(grid: Grid, features: Float[Tensor, "b q sc"], sources: int) -> Float[Tensor, "b p s c"]:
    """The features without their border, as a view."""
    return features[:, grid.center:grid.center + grid.span].unflatten(2, (sources, -1))


def _weighted(kernel: Float[Tensor, "p s kk"], features: Float[Tensor, "b p s c"]) -> Float[Tensor, "b p skkc"]:
    """U: features at each position times each of its weights."""
    return (kernel[..., None] * features[..., None, :]).flatten(2)
