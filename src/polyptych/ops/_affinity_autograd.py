"""The gradient of cross-task affinity, for the forms that never store an N x N matrix."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from polyptych.ops import _affinity_convolved as convolved
from polyptych.ops import _affinity_linear as linear
from polyptych.ops import _affinity_plain as plain
from polyptych.ops import _affinity_streamed as streamed
from polyptych.ops._affinity_grid import Grid


class Gather(torch.autograd.Function):
    """Cross-task affinity without its bias. For the backward pass it saves only the inputs and, in the linear form, the
    lagged correlations, whose size does not depend on the image; everything else is recomputed, because autograd would
    save U, which is k^2 times as large as the features."""

    @staticmethod
    def forward(ctx: Any, features: Float[Tensor, "b s c h w"], values: Float[Tensor, "b t d h w"],
                kernel: Float[Tensor, "r n s k k"], method: str) -> Float[Tensor, "b t d h w"]:
        correlations: list[Tensor] = []
        if method == "linear" and convolved.is_preferred(features):
            correlations = [convolved.lagged_correlations(features, values, kernel.shape[-1])]
            result = convolved.forward(features, values, kernel, *correlations)
        else:
            grid, rows = _rows(features, values, kernel)
            if method == "linear":
                correlations = [linear.lagged_correlations(grid, *rows[:2], kernel.shape[2], len(kernel))]
                result = grid.image(linear.forward(grid, *rows, *correlations)).view_as(values)
            else:
                result = grid.image(streamed.forward(grid, *rows)).view_as(values)
        ctx.save_for_backward(features, values, kernel, *correlations)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Float[Tensor, "b t d h w"]) -> tuple[Tensor | None, ...]:
        *inputs, = ctx.saved_tensors[:3]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # a gradient that will be differentiated
            return *torch.autograd.grad(plain.linear(*inputs), inputs, gradient, create_graph=True), None
        kept = ctx.saved_tensors[3:]
        with torch.autocast(gradient.device.type, enabled=False):
            if kept and convolved.is_preferred(inputs[0]):
                features, values, kernel = inputs
                return *convolved.backward(features, values, kernel, kept[0], gradient), None
            grid, rows = _rows(*inputs)
            outgoing = grid.rows(gradient.flatten(1, 2))
            found = (linear.backward(grid, *rows, kept[0], outgoing) if kept
                     else streamed.backward(grid, *rows, outgoing))
        filters = grid.image(found[2].flatten(2)).flatten(2).transpose(1, 2)
        images = grid.unbordered(found[0]), grid.image(found[1]), filters
        return *(image.reshape(x.shape).to(x.dtype) for image, x in zip(images, inputs, strict=True)), None


def _rows(features: Float[Tensor, "b s c h w"], values: Float[Tensor, "b t d h w"], kernel: Float[Tensor, "r n s k k"]
          ) -> tuple[Grid, tuple[Tensor, Tensor, Tensor]]:
    """The inputs in the layout of the grid; positions outside the image get kernels of zero."""
    grid = Grid(features.shape[3], features.shape[4], kernel.shape[-1])
    filters = grid.rows(kernel.flatten(2).transpose(1, 2).unflatten(2, (grid.h, grid.w)))
    return grid, (grid.bordered_rows(features.flatten(1, 2)), grid.rows(values.flatten(1, 2)),
                  filters.unflatten(2, (kernel.shape[2], -1)))
