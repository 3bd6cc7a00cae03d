"""Cross-task affinity in quadratic time, but never with an N x N matrix; see docs/affinity.md.

Follows the paper's order of computation, for a block of positions i at a time: their affinities with all positions, the
mixture of the tasks' affinities around every position, and the sum of all values weighted by it. This is cheaper than
the linear form if there are few positions, because its cost does not contain the product c d. The backward pass
recomputes each block instead of storing it, so that memory stays linear.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.ops._affinity_grid import Grid, accumulate, blocks, product

# r kernels: one per task, or one for all. e columns share a kernel: the d channels of one task, or of all.
# i: the positions of a block; p: all positions; q: all positions with their border.


def forward(grid: Grid, features: Float[Tensor, "b q sc"], values: Float[Tensor, "b p re"],
            kernel: Float[Tensor, "r p s kk"]) -> Float[Tensor, "b p re"]:
    """Y, as rows of ``grid``."""
    kernels = len(kernel)
    result = torch.empty_like(values)
    columns, summands = result.unflatten(2, (kernels, -1)), values.unflatten(2, (kernels, -1))
    for sample, positions, around in _neighborhoods(grid, features, kernel):
        mixed = torch.bmm(_filters(kernel, positions), around)  # (i r p)
        for r in range(kernels):
            columns[sample, positions, r] = product(mixed[None, :, r], summands[sample, None, :, r])[0].to(result.dtype)
    return result


def backward(grid: Grid, features: Float[Tensor, "b q sc"], values: Float[Tensor, "b p re"],
             kernel: Float[Tensor, "r p s kk"], gradient: Float[Tensor, "b p re"]
             ) -> tuple[Float[Tensor, "b q sc"], Float[Tensor, "b p re"], Float[Tensor, "r p s kk"]]:
    """Gradients of the three inputs, float32 at least."""
    (b, q, sc), (kernels, _, sources, kk) = features.shape, kernel.shape
    dtype = torch.promote_types(features.dtype, torch.float32)
    d_features = features.new_zeros(b, sources, q, sc // sources, dtype=dtype)
    d_values, d_kernel = torch.zeros_like(values, dtype=dtype), torch.zeros_like(kernel, dtype=dtype)
    summands, d_summands, outgoing = (x.unflatten(2, (kernels, -1)) for x in (values, d_values, gradient))

    for sample, positions, around in _neighborhoods(grid, features, kernel):
        filters = _filters(kernel, positions)
        mixed = torch.bmm(filters, around)  # (i r p)
        d_mixed = torch.empty_like(mixed)
        for r in range(kernels):
            out = outgoing[sample, None, positions, r]
            accumulate(d_summands[sample, None, :, r], mixed[None, :, r].transpose(1, 2), out)
            d_mixed[:, r] = product(out, summands[sample, None, :, r].transpose(1, 2))[0].to(mixed.dtype)
        d_filters = product(d_mixed, around.transpose(1, 2)).unflatten(2, (sources, kk))
        d_kernel[:, positions] += d_filters.transpose(0, 1)
        d_around = torch.bmm(filters.transpose(1, 2), d_mixed, out=around).unflatten(1, (sources, kk))
        # A_s[i, q] was read at every offset d with p + d = q, so its gradient is the sum over these.
        d_affinity = d_around.new_zeros(sources, len(d_around), features.shape[1], dtype=dtype)
        for d, shift in enumerate(grid.shifts):
            d_affinity[:, :, shift] += d_around[:, :, d].transpose(0, 1)
        d_affinity = d_affinity.to(features.dtype)
        everywhere, here = _per_source(features[sample], sources), _with_border(positions, grid)
        # g is on both sides of A = g(i) . g(q): once for the positions of the block, once for all positions.
        accumulate(d_features[sample, :, here], d_affinity, everywhere)
        accumulate(d_features[sample], d_affinity.transpose(1, 2), everywhere[:, here])
    return d_features.transpose(1, 2).flatten(2), d_values, d_kernel


def _neighborhoods(grid: Grid, features: Float[Tensor, "b q sc"], kernel: Float[Tensor, "r p s kk"]
                   ) -> Iterator[tuple[int, slice, Float[Tensor, "i skk p"]]]:
    """Block by block: a sample, some of its positions i, and their affinities A_s[i, p + d] for every source s and
    offset d. All blocks reuse the same memory, because allocating fresh pages would cost as much as the arithmetic."""
    _, _, sources, kk = kernel.shape
    some = [positions for _, positions in blocks(grid, 1, sources * kk * grid.span, features.device, share=8)]
    memory = features.new_empty(some[0].stop, sources, kk, grid.span)
    for sample, rows in enumerate(features):
        everywhere = _per_source(rows, sources)
        for positions in some:
            affinity = torch.bmm(everywhere[:, _with_border(positions, grid)], everywhere.transpose(1, 2))  # (s i q)
            around = memory[:affinity.shape[1]]
            for d, shift in enumerate(grid.shifts):
                around[:, :, d] = affinity[:, :, shift].transpose(0, 1)
            yield sample, positions, around.flatten(1, 2)


def _with_border(positions: slice, grid: Grid) -> slice:
    """Positions of the image as rows of the image with border."""
    return slice(grid.center + positions.start, grid.center + positions.stop)


def _per_source(features: Float[Tensor, "q sc"], sources: int) -> Float[Tensor, "s q c"]:
    """The features by source task, as a view."""
    return features.unflatten(1, (sources, -1)).transpose(0, 1)


def _filters(kernel: Float[Tensor, "r p s kk"], positions: slice) -> Float[Tensor, "i r skk"]:
    """The kernels of each position of a block."""
    return kernel[:, positions].flatten(2).transpose(0, 1).contiguous()
