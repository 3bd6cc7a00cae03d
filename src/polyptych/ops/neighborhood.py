"""Attention of every position to the square neighborhood around it.

Source: Brüggemann et al., ICCV 2021, arXiv 2104.13874 (ATRC), after Ramachandran et al., NeurIPS 2019, arXiv 1906.05909
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def neighborhood_attention(query: Float[Tensor, "b c h w"], key: Float[Tensor, "b c h w"],
                           value: Float[Tensor, "b d h w"], size: int) -> Float[Tensor, "b d h w"]:
    """The sum of the values of ``size`` x ``size`` neighbors, weighted by the softmax of q . k / sqrt(c).

    Neighbors outside the image have score and value 0, so they still take a share of the softmax: results fade at the
    border instead of being renormalized. Memory is size^2 numbers per position; neighborhoods are never copied
    (unfolded).
    """
    height, width = query.shape[-2:]
    around = [size // 2] * 4
    keys, values = F.pad(key, around), F.pad(value, around)
    places = [(row, column) for row in range(size) for column in range(size)]

    def shifted(x: Tensor, row: int, column: int) -> Tensor:
        return x[..., row:row + height, column:column + width]

    scores = torch.stack([(query * shifted(keys, *place)).sum(1) for place in places], dim=1)
    shares = (scores / query.shape[1] ** 0.5).softmax(1).unsqueeze(2).unbind(1)
    result = torch.zeros_like(value)
    for place, share in zip(places, shares, strict=True):
        result = result + share * shifted(values, *place)
    return result
