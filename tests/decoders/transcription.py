"""Layers written out: what the decoders' formulas are checked against, in float64 and with the batch's statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyptych.devices import shapes_only
from polyptych.types import Features, FeatureSpec, TaskFeatures

HRNET = FeatureSpec((18, 36, 72, 144), (4, 8, 16, 32))
HRNET_PARAMETERS = 3_860_720  # of HRNet-W18-small-v2
NYUV2 = {"semseg": 13, "depth": 1, "normals": 3}
CITYSCAPES = {"semseg": 19, "depth": 1}
NYUD_FOUR = {"semseg": 40, "depth": 1, "boundaries": 1, "normals": 3}
PASCAL = {"semseg": 21, "parts": 7, "saliency": 1, "normals": 3, "boundaries": 1}

SMALL = FeatureSpec((4, 8, 8), (4, 8, 16))  # with maps of sizes that are not halves
SIZES = ((9, 14), (5, 7), (2, 4))
CHANNELS = {"semseg": 5, "depth": 1, "normals": 3}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def built(config, channels: dict[str, int], spec: FeatureSpec = HRNET) -> nn.Module:
    """A decoder without memory, to count its parameters."""
    with shapes_only():
        return config.build(**everywhere(spec, channels))


def everywhere(spec: FeatureSpec, channels: dict[str, int]) -> dict:
    """Arguments of ``Config.build`` when all tasks have this pyramid."""
    return {"features": dict.fromkeys(channels, spec), "channels": channels}


def pyramid(seed: int = 0, spec: FeatureSpec = SMALL, sizes=SIZES) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(tuple(torch.randn(2, c, h, w, dtype=torch.float64, generator=generator)
                          for c, (h, w) in zip(spec.channels, sizes, strict=True)))


def own_pyramids(tasks=CHANNELS) -> TaskFeatures:
    return TaskFeatures({task: pyramid(seed) for seed, task in enumerate(tasks)})


def randomized(module: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


def conv(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """Zero padding, one product per tap, of all groups."""
    (stride, _), (p, _), (k, _), (dilation, _) = layer.stride, layer.padding, layer.kernel_size, layer.dilation
    b, c, h, w = x.shape
    padded = torch.zeros(b, c, h + 2 * p, w + 2 * p, dtype=x.dtype)
    padded[:, :, p:p + h, p:p + w] = x
    rows, columns = ((n + 2 * p - dilation * (k - 1) - 1) // stride + 1 for n in (h, w))
    weight, grouped = (z.unflatten(dim, (layer.groups, -1)) for z, dim in ((layer.weight, 0), (padded, 1)))
    y = torch.zeros(b, layer.groups, weight.shape[1], rows, columns, dtype=x.dtype)
    for i in range(k):
        for j in range(k):
            tap = grouped[..., dilation * i::stride, dilation * j::stride][..., :rows, :columns]
            y += torch.einsum("goc,bgchw->bgohw", weight[..., i, j], tap)
    y = y.flatten(1, 2)
    return y if layer.bias is None else y + layer.bias.view(-1, 1, 1)


def norm(x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (variance + layer.eps).sqrt() * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)


def conv_norm_relu(x: Tensor, layers: nn.Sequential) -> Tensor:
    return norm(conv(x, layers[0]), layers[1]).relu()


def block(x: Tensor, layers: nn.Module) -> Tensor:
    """A residual block with two (basic) or three (bottleneck) convolutions."""
    shortcut = x if layers.downsample is None else norm(conv(x, layers.downsample[0]), layers.downsample[1])
    y = norm(conv(x, layers.conv1), layers.bn1).relu()
    y = norm(conv(y, layers.conv2), layers.bn2)
    if hasattr(layers, "conv3"):
        y = norm(conv(y.relu(), layers.conv3), layers.bn3)
    return (y + shortcut).relu()


def enlarge(x: Tensor, height: int, width: int) -> Tensor:
    """Bilinear with half-pixel centers."""
    def weights(source: int, target: int) -> Tensor:
        position = ((torch.arange(target, dtype=x.dtype) + 0.5) * source / target - 0.5).clamp(0, source - 1)
        low = position.floor().long()
        high = (low + 1).clamp(max=source - 1)
        matrix = torch.zeros(target, source, dtype=x.dtype)
        matrix[torch.arange(target), low] += 1 - (position - low)
        matrix[torch.arange(target), high] += position - low
        return matrix
    return torch.einsum("yh,bchw,xw->bcyx", weights(x.shape[2], height), x, weights(x.shape[3], width))


def stacked(maps) -> Tensor:
    return torch.cat([enlarge(x, maps[0].shape[2], maps[0].shape[3]) for x in maps], dim=1)


def bottlenecks(x: Tensor, head: nn.Module) -> tuple[Tensor, Tensor]:
    """Features and prediction of a head of two bottlenecks."""
    y = block(block(x, head.refine[0]), head.refine[1])
    return y, conv(y, head.predict)
