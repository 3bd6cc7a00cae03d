"""Random lists of layers that fit together, and a plain interpreter of them that knows nothing of the package's."""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F

from polyptych.backbones._caffe import layers as spec
from polyptych.backbones._caffe.layers import Layer
from polyptych.backbones._caffe.network import Definition, Section


def whole_network(definition: Definition) -> Section:
    """A whole definition: takes an image (b c h w) and returns its output, or a tuple if there are several."""
    return Section(definition, (0,), definition.outputs)


def random_layers(seed: int, count: int = 12) -> tuple[list[Layer], tuple[int, int, int]]:
    """Layers of all types, written with bottoms; shapes are tracked here by the formulas of the documentation."""
    draw = random.Random(seed)
    shape = (draw.choice([1, 2, 3, 4]), draw.randint(9, 20), draw.randint(9, 20))
    tops: dict[str, tuple[int, ...]] = {"data": shape}
    made: list[Layer] = []
    for index in range(count):
        name = draw.choice(["layer{}", "block.{}.conv", "a/b_{}", "Ünit-{}"]).format(index)
        bottom = draw.choice(list(tops))
        layer, result = _draw(draw, name, bottom, tops)
        if layer is None:
            continue
        top = draw.choice(["", "", bottom if bottom != "data" else ""])  # in place, in Caffe's sense
        made.append(_with_top(layer, top))
        tops[top or name] = result
    if not made:
        return random_layers(seed + 1000003, count)
    return made, shape


def _with_top(layer: Layer, top: str) -> Layer:
    return type(layer)(**{**layer.__dict__, "top": top, "bottom": layer.bottoms})


def _draw(draw: random.Random, name: str, bottom: str, tops: dict[str, tuple[int, ...]]):
    shape = tops[bottom]

    def pair(low: int, high: int):
        height, width = draw.randint(low, high), draw.randint(low, high)
        return height if height == width else (height, width)

    kind = draw.choice(list(spec.TYPES))
    if kind in ("Convolution", "Deconvolution", "Pooling") and len(shape) != 3:
        kind = "InnerProduct"
    if kind == "Convolution":
        group = draw.choice([g for g in (1, 2, shape[0]) if shape[0] % g == 0])
        kernel, pad, dilation, stride = pair(1, 3), pair(0, 2), pair(1, 2), pair(1, 2)
        size = [(n + 2 * p - d * (k - 1) - 1) // s + 1
                for n, k, p, d, s in zip(shape[1:], *map(both, (kernel, pad, dilation, stride)), strict=True)]
        channels = group * draw.randint(1, 3)
        return (None, None) if min(size) < 1 else (spec.Convolution(
            name, bottom=bottom, num_output=channels, kernel_size=kernel, stride=stride, pad=pad, dilation=dilation,
            group=group, bias_term=draw.random() < 0.5), (channels, *size))
    if kind == "Deconvolution":
        kernel, stride = pair(1, 3), pair(1, 2)
        size = [(n - 1) * s + k for n, k, s in zip(shape[1:], both(kernel), both(stride), strict=True)]
        return (None, None) if max(size) > 40 else (spec.Deconvolution(
            name, bottom=bottom, num_output=2, kernel_size=kernel, stride=stride), (2, *size))
    if kind == "Pooling":
        mode, ceil = draw.choice(["MAX", "AVE"]), draw.random() < 0.5
        if draw.random() < 0.3:
            return spec.Pooling(name, bottom=bottom, pool=mode, global_pooling=True), (shape[0], 1, 1)
        kernel, stride = pair(2, 3), pair(1, 3)
        pad = draw.choice([0, 1])
        size = []
        for n, k, s in zip(shape[1:], both(kernel), both(stride), strict=True):
            exact = (n + 2 * pad - k) / s
            side = (math.ceil(exact) if ceil else math.floor(exact)) + 1
            if ceil and (side - 1) * s >= n + pad:  # a window that begins in the padding does not count
                side -= 1
            size.append(side)
        return (None, None) if min(size) < 1 else (spec.Pooling(
            name, bottom=bottom, pool=mode, kernel_size=kernel, stride=stride, pad=pad,
            round_mode="CEIL" if ceil else "FLOOR"), (shape[0], *size))
    if kind == "Eltwise":
        same = [top for top, other in tops.items() if other == shape]
        bottoms = tuple(draw.choice(same) for _ in range(draw.randint(2, 3)))
        operation = draw.choice(["PROD", "SUM", "MAX"])
        weigh = operation == "SUM" and draw.random() < 0.5
        coeff = tuple(draw.choice([1.0, -0.5, 2.0]) for _ in bottoms) if weigh else ()
        return spec.Eltwise(name, bottom=bottoms, operation=operation, coeff=coeff), shape
    if kind == "Concat":
        axis = draw.randrange(len(shape))
        fit = [top for top, other in tops.items() if len(other) == len(shape)
               and all(a == b for i, (a, b) in enumerate(zip(other, shape, strict=True)) if i != axis)]
        bottoms = tuple(draw.choice(fit) for _ in range(draw.randint(1, 3)))
        result = list(shape)
        result[axis] = sum(tops[top][axis] for top in bottoms)
        return spec.Concat(name, bottom=bottoms, axis=axis + 1), tuple(result)
    if kind == "Scale":
        gates = [top for top, other in tops.items() if other in (shape[:1], (shape[0], *[1] * (len(shape) - 1)), shape)]
        if draw.random() < 0.5:
            gate = draw.choice(gates)
            return spec.Scale(name, bottom=(bottom, gate), axis=0 if len(tops[gate]) < len(shape) else 1), shape
        return spec.Scale(name, bottom=bottom, bias_term=draw.random() < 0.5), shape
    if kind == "InnerProduct":
        return spec.InnerProduct(name, bottom=bottom, num_output=3, bias_term=draw.random() < 0.5), (3,)
    if kind == "Flatten":
        if len(shape) == 3 and draw.random() < 0.3:
            return spec.Flatten(name, bottom=bottom, axis=2), (shape[0], shape[1] * shape[2])
        return spec.Flatten(name, bottom=bottom), (math.prod(shape),)
    if kind == "BatchNorm":
        if len(shape) == 2:
            return None, None
        return spec.BatchNorm(name, bottom=bottom, eps=draw.choice([1e-5, 1e-3]), affine=draw.random() < 0.5), shape
    if kind == "ReLU":
        return spec.ReLU(name, bottom=bottom, negative_slope=draw.choice([0.0, 0.1])), shape
    if kind == "Dropout":
        return spec.Dropout(name, bottom=bottom, dropout_ratio=0.25), shape
    return spec.Sigmoid(name, bottom=bottom), shape


def both(value):
    return (value, value) if isinstance(value, int) else value


def interpret(made: list[Layer], weights: dict[str, torch.Tensor], image: torch.Tensor) -> dict[str, torch.Tensor]:
    """What every top holds at the end, in evaluation mode, by torch's functions and loops."""
    tops = {"data": image}
    for layer in made:
        inputs = [tops[name] for name in layer.bottoms]
        tops[layer.top or layer.name] = _apply(layer, inputs, lambda part, n=layer.name: weights.get(f"{n}.{part}"))
    return tops


def _apply(layer, inputs, weight):
    x = inputs[0]
    if isinstance(layer, spec.Convolution):
        return F.conv2d(x, weight("weight"), weight("bias"), layer.stride, layer.pad, layer.dilation, layer.group)
    if isinstance(layer, spec.Deconvolution):
        return F.conv_transpose2d(x, weight("weight"), weight("bias"), layer.stride, layer.pad, 0, layer.group,
                                  layer.dilation)
    if isinstance(layer, spec.BatchNorm):
        return F.batch_norm(x, weight("running_mean"), weight("running_var"), weight("weight"), weight("bias"),
                            eps=layer.eps)
    if isinstance(layer, spec.ReLU):
        return torch.where(x > 0, x, x * layer.negative_slope)
    if isinstance(layer, spec.Sigmoid):
        return torch.sigmoid(x)
    if isinstance(layer, spec.Dropout):
        return x
    if isinstance(layer, spec.Flatten):
        return x.reshape(*x.shape[:layer.axis], -1)
    if isinstance(layer, spec.InnerProduct):
        return F.linear(x.reshape(len(x), -1), weight("weight"), weight("bias"))
    if isinstance(layer, spec.Concat):
        return torch.cat(inputs, layer.axis)
    if isinstance(layer, spec.Eltwise):
        total = None
        for index, value in enumerate(inputs):
            value = value * (layer.coeff[index] if layer.coeff else 1)
            function = {"SUM": torch.add, "PROD": torch.mul, "MAX": torch.maximum}[layer.operation]
            total = value if total is None else function(total, value)
        return total
    if isinstance(layer, spec.Scale):
        if len(inputs) == 2:
            factor = inputs[1]
            return x * factor.reshape(*factor.shape, *[1] * (x.dim() - factor.dim()))
        column = (1, -1, *[1] * (x.dim() - 2))
        offset = weight("bias")
        return x * weight("weight").reshape(column) + (0 if offset is None else offset.reshape(column))
    assert isinstance(layer, spec.Pooling)
    if layer.global_pooling:
        return x.amax((2, 3), keepdim=True) if layer.pool == "MAX" else x.mean((2, 3), keepdim=True)
    function = F.max_pool2d if layer.pool == "MAX" else F.avg_pool2d
    return function(x, layer.kernel_size, layer.stride, layer.pad, ceil_mode=layer.round_mode == "CEIL")
