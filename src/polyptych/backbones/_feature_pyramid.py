"""A pyramid from the single map of a plain vision transformer."""

from __future__ import annotations

from jaxtyping import Float
from timm.layers import LayerNorm2d
from torch import Tensor, nn


class SimpleFeaturePyramid(nn.Module):
    """Strides 4, 8, 16 and 32, each computed from the same map: strided transposed convolutions, identity, max-pooling;
    then a 1x1 and a 3x3 convolution with LayerNorm.

    Li, Mao, Girshick, He, ECCV 2022 (ViTDet), arXiv 2203.16527, Figure 2 and Section 3; with 256 channels as in the
    paper.

    Args:
        channels: channels of the map.
        stride: stride of the map, a power of two.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, channels: int, stride: int, width: int = 256):
        super().__init__()
        self.scales = nn.ModuleList(_scale(channels, stride, target, width) for target in self.strides)

    def forward(self, x: Float[Tensor, "b c h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        return [scale(x) for scale in self.scales]


def _scale(channels: int, stride: int, target: int, width: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    while stride > target:
        layers.append(nn.ConvTranspose2d(channels, channels // 2, kernel_size=2, stride=2))
        stride, channels = stride // 2, channels // 2
        if stride > target:
            layers += [LayerNorm2d(channels), nn.GELU()]
    if stride < target:
        layers.append(nn.MaxPool2d(target // stride))
    layers += [nn.Conv2d(channels, width, 1, bias=False), LayerNorm2d(width),
               nn.Conv2d(width, width, 3, padding=1, bias=False), LayerNorm2d(width)]
    return nn.Sequential(*layers)
