"""Cross-task affinity in a few lines of differentiable operators: as published, and the linear form for export."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def materialized(features: Float[Tensor, "b s c h w"], values: Float[Tensor, "b t d h w"],
                  kernel: Float[Tensor, "r n s k k"]) -> Float[Tensor, "b t d h w"]:
    """The paper's formulas, computed literally; the mixture is a grouped convolution with one group per position."""
    b, s, _, h, w = features.shape
    n, k = h * w, kernel.shape[-1]
    affinity = torch.einsum("bscn,bscp->bnsp", features.flatten(3), features.flatten(3)).reshape(b, n * s, h, w)
    mixtures = [F.conv2d(affinity, weight, padding=k // 2, groups=n).flatten(2) for weight in kernel]
    mixture = torch.stack(mixtures, dim=1).expand(-1, values.shape[1], -1, -1)
    return torch.einsum("btdp,btnp->btdn", values.flatten(3), mixture).view_as(values)


def linear(features: Float[Tensor, "b s c h w"], values: Float[Tensor, "b t d h w"],
           kernel: Float[Tensor, "r n s k k"]) -> Float[Tensor, "b t d h w"]:
    """The linear form in a few differentiable operators; training needs k^2 times the memory of the features."""
    (h, w), k = features.shape[3:], kernel.shape[-1]
    here, source = features.flatten(3), F.pad(features, (k // 2,) * 4)
    flat, result = values.flatten(3), torch.zeros_like(values).flatten(3)
    for u in range(k):
        for v in range(k):
            lag = torch.einsum("btdn,bscn->btdsc", flat, source[..., u:u + h, v:v + w].flatten(3)).flatten(3)
            weighted = kernel[..., u, v].transpose(1, 2)[None, :, :, None] * here[:, None]
            result = result + lag @ weighted.flatten(2, 3)
    return result.view_as(values)
