"""Small networks, and what several tests of the search need."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polyptych.search import compile
from polyptych.search.capture.structure import take_apart

TASKS = ("a", "b", "c")
SPACES = ("automtl", "tree", "partition", "skip_only")
FAST = ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"]
SEVERAL = [*FAST, "resnet18", "mobilenetv2_050", "mobilenetv3_small_050", "hrnet_w18_small", "densenet121",
           "resnetv2_18", "regnety_002", "test_mambaout", "mobilevit_xxs", "pvt_v2_b0", "levit_128s",
           "edgenext_xx_small"]
FAMILIES: dict[str, str] = json.loads((Path(__file__).parents[2] / "benchmarks" / "timm_families.json").read_text())


def slow(names):
    """The same parameters, for the slow set."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def rest(names):
    """The same parameters, for the rest of a grid of which the fast set has a sample."""
    return [pytest.param(*([name] if isinstance(name, str) else name), marks=pytest.mark.grid)
            for name in names]


def image(like, batch: int = 1, seed: int = 1, dtype=torch.float32) -> Tensor:
    """As large as the image that a supermodel was captured with."""
    return torch.rand(batch, *like.capture.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=dtype)


def tensors(result) -> list[Tensor]:
    return take_apart(dict(result))[0]


def equal(one, other) -> bool:
    one, other = (list(x) if isinstance(x, list | tuple) else tensors(x) for x in (one, other))
    return len(one) == len(other) and all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def build(name: str, space: str = "tree", tasks=TASKS, seed: int = 0, options=None, **how):
    """A timm network in evaluation mode with scrambled norms, and its supermodel."""
    torch.manual_seed(seed)
    smaller = {"img_size": 64} if name == "test_vit" else {}
    network = timm.create_model(name, **(smaller | (options or {}))).eval()
    scramble(network)
    return network, compile(network, tasks, space=space, **how).eval()


@torch.no_grad()
def scramble(module: nn.Module) -> None:
    """Norms with statistics and affine maps that are not those of the start."""
    for part in module.modules():
        if getattr(part, "running_var", None) is not None:
            part.running_mean.normal_(std=0.3)
            part.running_var.uniform_(0.5, 1.5)
        if isinstance(part, nn.BatchNorm2d | nn.LayerNorm) and part.weight is not None:
            part.weight.uniform_(0.5, 1.5)
        if isinstance(part, nn.BatchNorm2d | nn.LayerNorm) and part.bias is not None:
            part.bias.normal_(std=0.3)


@torch.no_grad()
def perturb(supermodel, policies) -> None:
    """Make the copies that these policies use, and let them differ from what they are copies of."""
    supermodel.materialize(policies)
    generator = torch.Generator().manual_seed(7)
    for parameter in [*supermodel.banks.copies.parameters(), *supermodel.banks.projections.parameters()]:
        scale = 0.02 * float(parameter.abs().mean()) + 1e-3
        parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


class Pair(NamedTuple):
    fine: Tensor
    coarse: Tensor


class Everything(nn.Module):
    """In-place operators and methods, results that are thrown away, items that are written, sizes that are computed."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 4), (4, 4), (4, 8)))
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.register_buffer("offset", torch.rand(4, 1, 1))
        self.loose = torch.full((4, 1, 1), 0.25)

    def forward(self, image: Tensor, factor: float = 2.0, mask: Tensor | None = None):
        x = self.act(self.norm(self.first(image)))
        kept = x
        x += self.offset  # `kept` is the same tensor
        x.mul_(factor)
        F.relu(x, inplace=True)
        if mask is not None:
            x = x * mask
        y = self.second(kept) * self.scale
        y.add_(kept).clamp_(max=5.0)
        y[:, 0] = self.loose[0]
        y[:, 1:2, ::2] *= 0.5
        rows = torch.arange(y.shape[2]).view(1, 1, -1, 1)
        y = y + torch.zeros_like(y).copy_(rows / y.shape[2])
        _, _, height, width = y.shape
        if isinstance(y, Tensor) and len(y.shape) == y.ndim:
            z = self.third(F.interpolate(y, size=(height // 2, width // 2), mode="bilinear"))
        return {"maps": [y, z], "pair": Pair(z.mean((2, 3)), y.flatten(1).amax(1, keepdim=True)), "name": "all"}


class Windows(nn.Module):
    """Pads only where it has to, so that its structure depends on the size."""

    def __init__(self, size: int = 5):
        super().__init__()
        self.size, self.mix = size, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        below, right = -height % self.size, -width % self.size
        if below or right:
            x = F.pad(x, (0, right, 0, below))
        blocks = [x[:, :, i * self.size:(i + 1) * self.size] for i in range(x.shape[2] // self.size)]
        x = torch.cat([self.mix(block.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for block in blocks], dim=2)
        return x[:, :, :height, :width]


class Sized(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.windows, self.end = nn.Conv2d(3, 4, 3, 2, 1), Windows(), nn.Conv2d(4, 8, 3, 2, 1)

    def forward(self, image):
        return self.end(self.windows(self.stem(image)))


class Tangle(nn.Module):
    """Its own code asks for values of a tensor, and its blocks run in a row."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(i, 6, 3, padding=1), nn.ReLU()) for i in (3, 6, 6))

    def forward(self, image):
        x, outputs = image, []
        for block in self.blocks:
            x = block(x)
            if float(x.sum()) > -1e9:
                outputs.append(x)
        return outputs
