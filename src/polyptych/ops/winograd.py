"""3x3 convolutions with a quarter of the multiplications, for training on a CPU.

A tile of 4x4 results needs 6x6 inputs. Computed directly, each of the 16 results takes 9 products, 144 in all.
Winograd's method treats tile and weights as polynomials: evaluated at 6 points per axis, they are multiplied point by
point (36 products, each a matrix product over the channels), and the results are interpolated:

    Y = A' [ (G W G') . (B' X B) ] A             . is the product over channels, ' the transpose

Winograd 1980; Lavin and Gray, CVPR 2016, arXiv 1509.09308 (section 4.3). The points are 0, 1, -1, 1/2, -2 and
infinity: in float32 the largest error is then 3e-6 of the largest result, compared with 9e-6 for the usual points 0, 1,
-1, 2, -2 and infinity, and 3e-7 for a direct convolution.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from polyptych.ops import exporting

TILE, INPUT = 4, 6  # results and inputs of a tile, per side
POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)  # and infinity
FEWEST_CHANNELS, FEWEST_TILES = 128, 128  # with fewer, the transforms cost more than they save
CACHE = 8 * 2**20  # bytes of tiles, before and after the product, that are processed at a time


class Convolution3x3(nn.Conv2d):
    """A 3x3 convolution that keeps the resolution, without stride, dilation and groups; with the parameters
    of ``nn.Conv2d``. It uses Winograd's method where that is faster: in training, on a CPU, in float32, with many
    channels. Validation, export and compiled code use torch's convolution."""

    def __init__(self, channels_in: int, channels_out: int, bias: bool = True):
        super().__init__(channels_in, channels_out, 3, padding=1, bias=bias)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b o h w"]:
        y, = together(x, [self])
        return y


def together(x: Float[Tensor, "b c h w"], convolutions: Sequence[nn.Conv2d]) -> tuple[Float[Tensor, "b o h w"], ...]:
    """Apply every one of ``convolutions`` (all like :class:`Convolution3x3`, of one width) to ``x``. They run as a
    single convolution, so that the tiles of ``x`` are transformed only once, and narrow convolutions use the processor
    fully."""
    first = convolutions[0]
    alone = len(convolutions) == 1
    weight = first.weight if alone else torch.cat([one.weight for one in convolutions])
    bias = first.bias
    if bias is not None and not alone:
        bias = torch.cat([one.bias for one in convolutions if one.bias is not None])
    if first.training and pays(x, weight):
        y = convolve(x, weight)
        y = y if bias is None else y + bias[:, None, None]
    else:
        y = F.conv2d(x, weight, bias, padding=1)
    return (y,) if alone else y.split(first.out_channels, dim=1)


def pays(x: Float[Tensor, "b c h w"], weight: Float[Tensor, "o c 3 3"]) -> bool:
    """Whether :func:`convolve` is faster than torch's convolution, and supported: tensor subclasses and the transforms
    of torch.func are not."""
    return (x.dim() == 4 and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
            and min(weight.shape[:2]) >= FEWEST_CHANNELS
            and len(x) * -(-x.shape[2] // TILE) * -(-x.shape[3] // TILE) >= FEWEST_TILES
            and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
            and type(x) in (Tensor, nn.Parameter) and not torch._C._are_functorch_transforms_active()
            and not torch.compiler.is_compiling() and not exporting())


def convolve(x: Float[Tensor, "b c h w"], weight: Float[Tensor, "o c 3 3"]) -> Float[Tensor, "b o h w"]:
    """The 3x3 convolution with zero padding 1, as correlation, like torch's. The result has the layout of ``x``."""
    y: Tensor = _Winograd.apply(x, weight)
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return y.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


class _Winograd(torch.autograd.Function):
    """Processes bands of tiles, channels last throughout. Saves its inputs, and transforms them again in the backward
    pass."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        maps, plan = _Plan.of(x, weight)
        kernels = _transform(_matrices(x.dtype).weight, _taps(weight))  # G W G', for all tiles
        # The 36 values of a tile take 2.25 times its memory, before the product and after it. Transforming the whole
        # map at once would write and read all that from main memory, which costs more than the multiplications saved.
        result = x.new_empty(plan.batch, plan.rows * TILE, plan.columns * TILE, weight.shape[0])
        for band in plan.bands():
            products = torch.bmm(_transform(_matrices(x.dtype).input, _tiles(maps, band, plan)), kernels)
            _blocks(result, band, plan).copy_(_unfold(_transform(_matrices(x.dtype).output, products), band, plan))
        return result[:, :plan.height, :plan.width].permute(0, 3, 1, 2)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        # Batched gradients have a hidden axis that the strided views below would misread.
        if torch._C._functorch.is_legacy_batchedtensor(gradient):  # autograd.grad(is_grads_batched=True)
            to_input, to_weight, _ = torch.ops.aten.convolution_backward(
                gradient, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [*ctx.needs_input_grad, False])
            return to_input, to_weight
        matrices = _matrices(x.dtype)
        maps, plan = _Plan.of(x, weight)
        # Each step of Y = A' [(G W G') . (B' X B)] A is linear, so its gradient is the transposed step: A first, then
        # the products with the other factor, then G or B. Tiles are transformed again, since keeping them would take
        # 2.25 times the memory of the map until the backward pass.
        kernels = _transform(matrices.weight, _taps(weight)).transpose(1, 2)
        gradient = F.pad(gradient.permute(0, 2, 3, 1), (0, 0, 0, plan.columns * TILE - plan.width,
                                                        0, plan.rows * TILE - plan.height))
        to_input = torch.zeros_like(maps) if ctx.needs_input_grad[0] else None
        to_kernels = torch.zeros_like(kernels.transpose(1, 2)) if ctx.needs_input_grad[1] else None
        for band in plan.bands():
            blocks = _blocks(gradient, band, plan).reshape(TILE * TILE, -1, weight.shape[0])
            products = _transform(matrices.output.T, blocks)
            if to_kernels is not None:
                tiles = _transform(matrices.input, _tiles(maps, band, plan))
                to_kernels = torch.baddbmm(to_kernels, tiles.transpose(1, 2), products)
            if to_input is not None:
                _add_tiles(to_input, _transform(matrices.input.T, torch.bmm(products, kernels)), band, plan)
        if to_input is not None:
            to_input = to_input[:, 1:plan.height + 1, 1:plan.width + 1].permute(0, 3, 1, 2)
        if to_kernels is not None:
            to_kernels = _transform(matrices.weight.T, to_kernels).unflatten(0, (3, 3)).permute(3, 2, 0, 1)
        return to_input, to_kernels


class _Matrices(NamedTuple):
    """Transforms of both axes at once, each of shape (outputs, inputs)."""

    input: Float[Tensor, "36 36"]
    weight: Float[Tensor, "36 9"]
    output: Float[Tensor, "16 36"]


@cache
def _matrices(dtype: torch.dtype) -> _Matrices:
    """To multiply polynomials of 4 and 3 coefficients, evaluate both at 6 points, multiply, and interpolate; a
    correlation is the transpose of this.

    Inverted and multiplied in float64, because rounding the inverse to float32 before the Kronecker product would add
    an error to every tile.
    """

    def evaluation(coefficients: int) -> Tensor:
        infinity = [0.0] * (coefficients - 1) + [1.0]
        return torch.tensor([*([point**k for k in range(coefficients)] for point in POINTS), infinity],
                            dtype=torch.float64, device="cpu")

    sides = torch.linalg.inv(evaluation(INPUT)).T, evaluation(3), evaluation(TILE).T
    return _Matrices(*(torch.kron(side, side).to(dtype) for side in sides))


class _Plan(NamedTuple):
    """A map cut into ``rows`` x ``columns`` tiles, and the number of rows of tiles that are processed at a time."""

    batch: int
    height: int
    width: int
    rows: int
    columns: int
    at_a_time: int

    @classmethod
    def of(cls, x: Tensor, weight: Tensor) -> tuple[Float[Tensor, "b hp wp c"], _Plan]:
        """``x`` with its channels last and padded so that every tile is whole, and the plan for it."""
        batch, channels, height, width = x.shape
        rows, columns = -(-height // TILE), -(-width // TILE)
        row = INPUT**2 * batch * columns * (channels + weight.shape[0]) * x.element_size()
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, columns * TILE + 1 - width, 1, rows * TILE + 1 - height))
        return padded.contiguous(), cls(batch, height, width, rows, columns, max(1, round(CACHE / row)))

    def bands(self) -> Iterator[range]:
        for start in range(0, self.rows, self.at_a_time):
            yield range(start, min(start + self.at_a_time, self.rows))


def _taps(weight: Float[Tensor, "o c 3 3"]) -> Float[Tensor, "9 c o"]:
    return weight.permute(2, 3, 1, 0).flatten(0, 1)


def _transform(matrix: Float[Tensor, "m k"], values: Float[Tensor, "k p c"]) -> Float[Tensor, "m p c"]:
    return (matrix @ values.flatten(1)).unflatten(1, values.shape[1:])


def _tiles(maps: Float[Tensor, "b hp wp c"], band: range, plan: _Plan) -> Float[Tensor, "36 p c"]:
    """The overlapping 6x6 inputs of a band of tiles."""
    image, row, column, channel = maps.stride()
    size = (INPUT, INPUT, plan.batch, len(band), plan.columns, maps.shape[3])
    view = maps.as_strided(size, (row, column, image, TILE * row, TILE * column, channel),
                           maps.storage_offset() + band.start * TILE * row)
    return view.reshape(INPUT * INPUT, -1, maps.shape[3])


def _blocks(maps: Float[Tensor, "b h w c"], band: range, plan: _Plan) -> Float[Tensor, "4 4 b r s c"]:
    """A view of a band of 4x4 results."""
    part = maps[:, band.start * TILE:band.stop * TILE].unflatten(2, (plan.columns, TILE))
    return part.unflatten(1, (len(band), TILE)).permute(2, 4, 0, 1, 3, 5)


def _unfold(values: Float[Tensor, "k p c"], band: range, plan: _Plan) -> Float[Tensor, "side side b r s c"]:
    side = round(len(values)**0.5)
    return values.view(side, side, plan.batch, len(band), plan.columns, -1)


def _add_tiles(maps: Float[Tensor, "b hp wp c"], tiles: Float[Tensor, "36 p c"], band: range, plan: _Plan) -> None:
    """The adjoint of :func:`_tiles`: adds the tiles, which overlap their neighbors by two, where they came from."""
    six = _unfold(tiles, band, plan)
    # An addition in place loses terms if memory appears twice in a view. Tiles repeat every 4 pixels, so their 6x6
    # inputs are added in four parts without overlap: the first 4 rows or the last 2, likewise for columns.
    for rows in (slice(0, TILE), slice(TILE, INPUT)):
        for columns in (slice(0, TILE), slice(TILE, INPUT)):
            down, across = rows.stop - rows.start, columns.stop - columns.start
            image, row, column, channel = maps.stride()
            place = maps.as_strided(
                (down, across, plan.batch, len(band), plan.columns, maps.shape[3]),
                (row, column, image, TILE * row, TILE * column, channel),
                maps.storage_offset() + (band.start * TILE + rows.start) * row + columns.start * column)
            place += six[rows, columns]
