"""Layers written out as formulas, and small networks for the tests of encoders."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyptych.backbones.segnet import SegNet
from polyptych.backbones.timm import Timm
from polyptych.backbones.wide_resnet import WideResNet

RESNET = Timm.Config(model="test_resnet")
HRNET = Timm.Config(model="hrnet_w18_small")
VIT = Timm.Config(model="test_vit")
TWINS = Timm.Config(model="twins_pcpvt_small", architecture="embed_dims=(16, 32, 40, 64), depths=(1, 1, 1, 1)")
"""Of a family that cannot be cut into stages."""
SEGNET = SegNet.Config(width=4, bottom_width=6)
WIDE = WideResNet.Config(depth=10, width=1)
TASKS = {2: ("a", "b"), 5: ("a", "b", "c", "d", "e")}


def tasks(number: int) -> tuple[str, ...]:
    return TASKS[number]


def build(config, backbone, names, seed=0):
    """In evaluation mode, with statistics and affine maps of BatchNorm that are not those of the start."""
    torch.manual_seed(seed)
    encoder = config.build(backbone=backbone, tasks=names)
    scramble(encoder)
    return encoder.double().eval()


def scramble(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.3)
            nn.init.normal_(part.running_mean, std=0.3)
            nn.init.uniform_(part.running_var, 0.5, 1.5)


def image(height=64, width=96, batch=2, dtype=torch.float64) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)


def pointwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 1x1 convolution as a matrix product."""
    y = torch.einsum("oc,bchw->bohw", conv.weight[:, :, 0, 0], x)
    return y if conv.bias is None else y + conv.bias.view(-1, 1, 1)


def threefold(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A 3x3 convolution as nine matrix products."""
    rows, columns = x.shape[2:]
    padded = x.new_zeros(x.shape[0], x.shape[1], rows + 2, columns + 2)
    padded[:, :, 1:-1, 1:-1] = x
    y = sum(torch.einsum("oc,bchw->bohw", conv.weight[:, :, i, j], padded[:, :, i:i + rows, j:j + columns])
            for i in range(3) for j in range(3))
    return y if conv.bias is None else y + conv.bias.view(-1, 1, 1)


def normalized(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    def column(v: Tensor) -> Tensor:
        return v.view(-1, 1, 1)
    return ((x - column(norm.running_mean)) / (column(norm.running_var) + norm.eps).sqrt() * column(norm.weight)
            + column(norm.bias))


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def layers(module: nn.Module, kind: type[nn.Module]) -> list:
    return [part for part in module.modules() if isinstance(part, kind)]


def pooled(x: Tensor) -> Tensor:
    """The maximum of every 2x2 square."""
    return torch.stack([x[:, :, i::2, j::2] for i in range(2) for j in range(2)]).amax(0)


def mask(x: Tensor, module: nn.Module) -> Tensor:
    """sigmoid(BN(conv(ReLU(BN(conv(x))))))."""
    (first, second), (one, two) = layers(module, nn.Conv2d), layers(module, nn.BatchNorm2d)
    z = normalized(pointwise(relu(normalized(pointwise(x, first), one)), second), two)
    return 1 / (1 + (-z).exp())


def convolved(x: Tensor, module: nn.Module) -> Tensor:
    """conv3x3, BN, ReLU, as often as the module has them."""
    for conv, norm in zip(layers(module, nn.Conv2d), layers(module, nn.BatchNorm2d), strict=True):
        x = relu(normalized(threefold(x, conv), norm))
    return x


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
