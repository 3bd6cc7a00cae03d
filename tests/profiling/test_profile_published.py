"""Multiply-adds of two networks of the literature: by hand exactly, and against the published numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polyptych.backbones._high_resolution import Exchange
from polyptych.backbones.timm import Timm
from polyptych.decoders.heads import Heads
from polyptych.encoders.shared import Shared
from polyptych.networks import Network
from polyptych.profiling.operators import count


def by_hand(network: Network, size: tuple[int, int]) -> tuple[int, int]:
    """Multiply-adds of all convolutions from their definition, and what fvcore would add to them: two per element of
    a BatchNorm and four per element of a bilinear interpolation inside the backbone."""
    convolutions, others = 0, 0

    def visit(module, inputs, output):
        nonlocal convolutions, others
        if isinstance(module, nn.Conv2d):
            convolutions += output.numel() * module.in_channels // module.groups * module.kernel_size[0] ** 2
        elif isinstance(module, nn.BatchNorm2d):
            others += 2 * output.numel()
        elif isinstance(module, Exchange):  # every coarser branch is enlarged for every finer one
            others += sum(4 * x.numel() * (len(output) - 1 - i) for i, x in enumerate(output))

    handles = [module.register_forward_hook(visit) for module in network.modules()]
    with torch.no_grad():
        network.eval()(torch.rand(1, 3, *size))
    for handle in handles:
        handle.remove()
    return convolutions, others


@pytest.mark.parametrize(("channels", "size", "published", "resized"), [
    # what the heads' interpolations resize: 252 channels to stride 4 for every task, then predictions to the image
    ((13, 1, 3), (288, 384), 5.14, 4 * (3 * 252 * 72 * 96 + 17 * 288 * 384)),
    ((19, 1), (128, 256), 1.37, 4 * (2 * 252 * 32 * 64 + 20 * 128 * 256)),
])
def test_hrnet18_against_its_published_number(channels, size, published, resized):
    tasks = {f"task{i}": c for i, c in enumerate(channels)}
    network = Network.build(Timm.Config(model="hrnet_w18_small_v2"), Shared.Config(), Heads.Config(head="fused"), tasks)
    found, _ = count(network.eval(), lambda: network(torch.rand(1, 3, *size)))
    convolutions, others = by_hand(network, size)
    assert found.total == convolutions  # exactly
    assert (convolutions + others + resized) / 1e9 == pytest.approx(published, abs=0.005)  # fvcore's convention


@pytest.mark.slow
def test_dilated_resnet50_against_its_published_number():
    tasks = {"semseg": 40, "depth": 1}
    network = Network.build(Timm.Config(model="resnet50", output_stride=8), Shared.Config(), Heads.Config(head="aspp"),
                            tasks)
    found, _ = count(network.eval(), lambda: network(torch.rand(1, 3, 480, 640)))
    assert found.total == by_hand(network, (480, 640))[0]
    assert found.total / 1e9 == pytest.approx(267, rel=0.01)
