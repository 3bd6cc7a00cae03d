"""One image whose coarsest map is a single position: BatchNorm has nothing to measure there, and training goes on."""

from __future__ import annotations

import pytest
import torch

from polyptych.backbones.timm import Timm
from polyptych.decoders._base import CATALOG, Decoder
from polyptych.decoders.heads import KINDS, Heads
from polyptych.encoders.shared import Shared
from polyptych.network import Network

DECODERS = [CATALOG.load(name).Config() for name in CATALOG.names() if name not in ("heads", "task_prompter")]


@pytest.mark.parametrize("decoder", [*(Heads.Config(head=kind, width=8) for kind in KINDS), *DECODERS],
                         ids=lambda c: f"{c.name}-{getattr(c, 'head', '')}")
@pytest.mark.parametrize("pyramid", ["taps", "simple"])
def test_trains(decoder: Decoder.Config, pyramid):
    torch.manual_seed(0)
    network = Network.build(Timm.Config(model="test_vit", vit_pyramid=pyramid), Shared.Config(), decoder,
                            {"semseg": 3, "depth": 1}).train()
    side = 16 if pyramid == "taps" else 32
    output = network(torch.rand(1, 3, side, side))
    sum(x.square().sum() for x in output.final.values()).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
