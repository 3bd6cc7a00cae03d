"""The linear form of cross-task affinity as convolutions: the fastest on a CPU with oneDNN; see docs/affinity.md.

    Y_t[:, i] = sum_s sum_d K_t[i, s, d] L[t, s, d] g_s(:, i)        L[t, s, d] = sum_p V_t[:, p] g_s(:, p + d)^T

L equals the weight gradient of a k x k convolution with input g and output gradient V. Given the gradient of L, the
gradients of V and g are therefore a convolution and the input gradient of one. Y is a 1 x 1 convolution of an image U
with the channels K_t[i, s, d] g_s(c, i), which is computed block by block, and again in the backward pass. The
arithmetic is that of :mod:`polyptych.ops._affinity_linear`; on processors that MKL does not optimize for, oneDNN's
convolutions are twice as fast as MKL's matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

HAS_ONEDNN = torch.backends.mkldnn.is_available()
BLOCK = 2**22  # numbers in a block of U (16 MiB): large enough for oneDNN to reach its speed, whatever the image

# r kernels: one per task, or one for all. e channels share a kernel: the d channels of one task, or of all.


def is_preferred(features: Tensor) -> bool:
    """Whether convolutions of such tensors run in oneDNN, which has no float64."""
    return features.device.type == "cpu" and features.dtype == torch.float32 and HAS_ONEDNN


def lagged_correlations(features: Float[Tensor, "b s c h w"], values: Float[Tensor, "b t d h w"], k: int
                        ) -> Float[Tensor, "b td sc k k"]:
    """L, as the weight gradient of a convolution, for each sample."""
    source, target = _image(features), _image(values)
    shape = (target.shape[1], source.shape[1], k, k)
    return torch.stack([conv2d_weight(g[None], shape, v[None], padding=k // 2)
                        for g, v in zip(source, target, strict=True)])


def forward(features: Float[Tensor, "b s c h w"], values: Float[Tensor, "b t d h w"],
            kernel: Float[Tensor, "r n s k k"], correlations: Float[Tensor, "b td sc k k"]
            ) -> Float[Tensor, "b t d h w"]:
    """Y."""
    here, filters = _positions(features), kernel.flatten(3)
    result = here.new_empty(*here.shape[:2], *values.shape[1:3])
    columns = result.view(*here.shape[:2], len(kernel), -1)
    for sample, lags in enumerate(correlations):
        matrices = _matrices(lags, features, kernel)
        for positions in _blocks(filters, here.shape[3]):
            for r, matrix in enumerate(matrices):
                weighted = _row_image(_weighted(filters[r, positions], here[sample, positions]))
                columns[sample, positions, r] = _of_row_image(F.conv2d(weighted, matrix))
    return _from_positions(result, values)


def backward(features: Float[Tensor, "b s c h w"], values: Float[Tensor, "b t d h w"],
             kernel: Float[Tensor, "r n s k k"], correlations: Float[Tensor, "b td sc k k"],
             gradient: Float[Tensor, "b t d h w"]
             ) -> tuple[Float[Tensor, "b s c h w"], Float[Tensor, "b t d h w"], Float[Tensor, "r n s k k"]]:
    """Gradients of the three inputs."""
    here, filters, k = _positions(features), kernel.flatten(3), kernel.shape[-1]
    columns = _positions(gradient).flatten(2).unflatten(2, (len(kernel), -1))
    d_here, d_filters = torch.zeros_like(here), torch.zeros_like(filters)
    through_lags = []
    for sample, lags in enumerate(correlations):
        matrices = _matrices(lags, features, kernel)
        d_matrices = torch.zeros_like(matrices)
        for positions in _blocks(filters, here.shape[3]):
            at = here[sample, positions]  # (p s c)
            for r, matrix in enumerate(matrices):
                chosen = filters[r, positions]  # (p s kk)
                d_weighted, d_matrix, _ = torch.ops.aten.convolution_backward(
                    _row_image(columns[sample, positions, r]), _row_image(_weighted(chosen, at)), matrix,
                    None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1, [True, True, False])
                d_matrices[r] += d_matrix
                d_weighted = _of_row_image(d_weighted).view(*chosen.shape, -1)  # (p s kk c)
                d_here[sample, positions] += (chosen[..., None, :] @ d_weighted)[..., 0, :]
                d_filters[r, positions] += (d_weighted * at[..., None, :]).sum(3)
        d_lags = _lags(d_matrices, features, k)
        source, target = _image(features[sample, None]), _image(values[sample, None])
        through_lags.append((conv2d_input(source.shape, d_lags, target, padding=k // 2),
                             F.conv2d(source, d_lags, padding=k // 2)))
    d_source, d_target = (torch.cat(parts) for parts in zip(*through_lags, strict=True))
    d_features = _from_positions(d_here, features) + d_source.view_as(features)
    return d_features, d_target.view_as(values), d_filters.view_as(kernel)


def _blocks(filters: Float[Tensor, "r n s kk"], channels: int) -> Iterator[slice]:
    """Positions to work on at a time."""
    length = max(1, BLOCK // (filters[0, 0].numel() * channels))
    for start in range(0, filters.shape[1], length):
        yield slice(start, min(start + length, filters.shape[1]))


def _weighted(filters: Float[Tensor, "p s kk"], features: Float[Tensor, "p s c"]) -> Float[Tensor, "p skkc"]:
    """U: features at each position times each of its weights."""
    return (filters[..., None] * features[..., None, :]).flatten(1)


def _matrices(lags: Float[Tensor, "td sc k k"], features: Float[Tensor, "b s c h w"],
              kernel: Float[Tensor, "r n s k k"]) -> Float[Tensor, "r e skkc 1 1"]:
    """L as the weights of the 1 x 1 convolution of each kernel, in the order of U."""
    apart = lags.flatten(2).unflatten(1, features.shape[1:3]).unflatten(0, (len(kernel), -1))  # (r e s c kk)
    return apart.transpose(3, 4).flatten(2)[..., None, None]


def _lags(matrices: Float[Tensor, "r e skkc 1 1"], features: Float[Tensor, "b s c h w"], k: int
          ) -> Float[Tensor, "td sc k k"]:
    """The inverse of :func:`_matrices`."""
    sources, channels = features.shape[1:3]
    apart = matrices.flatten(2).unflatten(2, (sources, k * k, channels)).transpose(3, 4)
    return apart.flatten(0, 1).flatten(1, 2).unflatten(2, (k, k)).contiguous(memory_format=torch.channels_last)


def _image(maps: Float[Tensor, "b s c h w"]) -> Float[Tensor, "b sc h w"]:
    """The channels of all tasks concatenated, in channels-last memory: no copy if they are already."""
    return maps.flatten(1, 2).contiguous(memory_format=torch.channels_last)


def _positions(maps: Float[Tensor, "b s c h w"]) -> Float[Tensor, "b n s c"]:
    return maps.permute(0, 3, 4, 1, 2).flatten(1, 2).contiguous()


def _from_positions(rows: Float[Tensor, "b n s c"], like: Float[Tensor, "b _ _ h w"]) -> Float[Tensor, "b s c h w"]:
    return rows.unflatten(1, like.shape[3:]).permute(0, 3, 4, 1, 2)


def _row_image(rows: Float[Tensor, "p q"]) -> Float[Tensor, "1 q 1 p"]:
    """A matrix as an image of one row. The strides of its dimensions of size one are channels-last too, because
    otherwise torch copies it."""
    return rows.contiguous()[None, None].permute(0, 3, 1, 2)


def _of_row_image(image: Float[Tensor, "1 q 1 p"]) -> Float[Tensor, "p q"]:
    """The inverse of :func:`_row_image`."""
    return image[0, :, 0].t().contiguous()
