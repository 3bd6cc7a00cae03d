"""A memory layout in which shifting an image is only an offset, and matrix products that accumulate in float32."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """An h x w image, and its k x k neighborhoods, as rows of a matrix.

    An image with a border of ``margin`` zeros is stored position by position, (p c). The neighbors at offset (u, v) of
    *all* positions are then the ``span`` consecutive rows from ``u * stride + v`` on: a view. Arrays used together with
    them are stored with the same stride, so ``2 * margin`` rows between two lines of the image belong to no position.
    They hold zeros, and therefore add nothing to any sum.
    """

    h: int
    w: int
    k: int

    @property
    def margin(self) -> int:
        return self.k // 2

    @property
    def stride(self) -> int:
        """Rows from one line of the image to the next."""
        return self.w + 2 * self.margin

    @property
    def span(self) -> int:
        """Rows from the first position of the image to the last."""
        return self.h * self.stride - 2 * self.margin

    @property
    def center(self) -> int:
        """The first row of the image itself in the image with border."""
        return self.margin * self.stride + self.margin

    @property
    def shifts(self) -> list[slice]:
        """The rows of every offset of the neighborhood, line by line."""
        return [slice(start, start + self.span)
                for start in (u * self.stride + v for u in range(self.k) for v in range(self.k))]

    def rows(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b p c"]:
        """An image as ``span`` rows, without a border above and below."""
        lines = F.pad(image.permute(0, 2, 3, 1), (0, 0, 0, 2 * self.margin))
        return lines.flatten(1, 2).contiguous()[:, :self.span]

    def bordered_rows(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b p c"]:
        """An image as rows, with a border on all sides."""
        lines = F.pad(image.permute(0, 2, 3, 1), (0, 0, *(self.margin,) * 4))
        return lines.flatten(1, 2).contiguous()

    def image(self, rows: Float[Tensor, "b p c"]) -> Float[Tensor, "b c h w"]:
        """The inverse of :meth:`rows`, ignoring what is between the lines."""
        lines = F.pad(rows, (0, 0, 0, 2 * self.margin)).unflatten(1, (self.h, self.stride))
        return lines[:, :, :self.w].permute(0, 3, 1, 2).contiguous()

    def unbordered(self, rows: Float[Tensor, "b p c"]) -> Float[Tensor, "b c h w"]:
        """The inverse of :meth:`bordered_rows`."""
        lines = rows.unflatten(1, (-1, self.stride))
        return lines[:, self.margin:, self.margin:][:, :self.h, :self.w].permute(0, 3, 1, 2).contiguous()


def blocks(grid: Grid, samples: int, per_position: int, device: torch.device, *, share: int = 1
           ) -> Iterator[tuple[slice, slice]]:
    """Samples and positions to work on at a time, when each position of a sample needs ``per_position`` numbers.

    A CPU is fastest with blocks of 2 MiB (times ``share``), which fit its caches; a GPU with few large blocks. Block
    sizes do not depend on the size of the image.
    """
    cpu = device.type == "cpu"
    together = 1 if cpu else samples
    length = max(1, (share * 2**19 if cpu else 2**26) // (together * per_position))
    for sample in range(0, samples, together):
        for start in range(0, grid.span, length):
            yield slice(sample, sample + together), slice(start, min(start + length, grid.span))


def product(a: Float[Tensor, "b m n"], b: Float[Tensor, "b n o"]) -> Float[Tensor, "b m o"]:
    """Batched matrix product of float32 or float64, or of bfloat16 with a result in float32 (CUDA only)."""
    return torch.bmm(a, b, out_dtype=torch.float32) if a.dtype == torch.bfloat16 else torch.bmm(a, b)


def accumulate(total: Float[Tensor, "b m o"], a: Float[Tensor, "b m n"], b: Float[Tensor, "b n o"]) -> None:
    """``total += a @ b``, with ``total`` in float32 at least."""
    if a.dtype == torch.bfloat16:
        total += product(a, b)
    else:
        total.baddbmm_(a, b)
