"""The gradient of cross-task affinity, for both forms that never store an N x N matrix."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.ops import _affinity_linear as linear
from polyptych.ops import _affinity_plain as plain
from polyptych.ops import _affinity_streamed as streamed
from polyptych.ops._affinity_grid import Grid


class Gather(torch.autograd.Function):
    """Cross-task affinity without its bias. What is kept for the backward pass are the inputs, and the lagged
    correlations of the linear form, whose size does not depend on the image; all else is made again."""

    @staticmethod
    def forward(ctx: Any, features: Float[Tensor, "b s c h w"], values: Float[Tensor, "b t d h w"],
                kernel: Float[Tensor, "r n s k k"], method: str) -> Float[Tensor, "b t d h w"]:
        grid, rows = _rows(features, values, kernel)
        if method == "linear":
            correlations = [linear.lagged_correlations(grid, *rows[:2], kernel.shape[2], len(kernel))]
            result = linear.forward(grid, *rows, *correlations)
        else:
            correlations, result = [], streamed.forward(grid, *rows)
        ctx.save_for_backward(features, values, kernel, *correlations)
        return grid.image(result).view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "b t d h w"]) -> tuple[Tensor | None, ...]:
        *inputs, = ctx.saved_tensors[:3]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # a gradient that will be differentiated
            return *torch.autograd.grad(plain.linear(*inputs), inputs, gradient, create_graph=True), None
        with torch.autocast(gradient.device.type, enabled=False):
            grid, rows = _rows(*inputs)
            form = linear if len(ctx.saved_tensors) > 3 else streamed
            found = form.backward(grid, *rows, *ctx.saved_tensors[3:], grid.rows(gradient.flatten(1, 2)))
        filters = grid.image(found[2].flatten(2)).flatten(2).transpose(1, 2)
        images = grid.unbordered(found[0]), grid.image(found[1]), filters
        return *(image.reshape(x.shape).to(x.dtype) for image, x in zip(images, inputs, strict=True)), None


def _rows(features: Float[Tensor, "b s c h w"], values: Float[Tensor, "b t d h w"], kernel: Float[Tensor, "r n s k k"]
          ) -> tuple[Grid, tuple[Tensor, Tensor, Tensor]]:
    """The inputs in the layout of the grid; positions that are not in the image have kernels of zero."""
    grid = Grid(features.shape[3], features.shape[4], kernel.shape[-1])
    filters = grid.rows(kernel.flatten(2).transpose(1, 2).unflatten(2, (grid.h, grid.w)))
    return grid, (grid.bordered_rows(features.flatten(1, 2)), grid.rows(values.flatten(1, 2)),
                  filters.unflatten(2, (kernel.shape[2], -1)))
