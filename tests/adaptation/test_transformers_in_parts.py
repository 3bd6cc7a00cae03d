"""Transformers with rotary positions, registers and class tokens run block by block, as they do in one piece."""

from __future__ import annotations

import pytest
import timm
import torch

from polyptych.backbones.timm import Timm, _options
from polyptych.checkpoint import fill
from polyptych.decoders.heads import Heads
from polyptych.encoders.cross_stitch import CrossStitch
from polyptych.encoders.shared import Shared
from polyptych.encoders.split import Split
from polyptych.networks import Network

SMALL = "embed_dim=48, num_heads=2, depth=5"
MODELS = ["vit_small_patch16_dinov3", "vit_small_plus_patch16_dinov3", "eva02_tiny_patch14_224",
"eva02_base_patch14_448",
          "vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_224", "vit_pe_spatial_tiny_patch16_512.fb"]
DINO = Timm.Config(model=MODELS[0], architecture=SMALL)


@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_the_same_numbers_as_in_one_piece(model):
    config = Timm.Config(model=model, architecture=SMALL, vit_pyramid="taps")
    torch.manual_seed(0)
    backbone = config.build().eval()
    torch.manual_seed(0)
    whole = timm.create_model(model, features_only=True, **_options(config)).eval()
    image = torch.rand(2, 3, 64, 96)
    assert len(backbone.stages) == 5
    assert all(torch.equal(x, y) for x, y in zip(backbone(image).maps, whole(image), strict=True))


@pytest.mark.parametrize("encoder", [Split.Config(private=2), CrossStitch.Config()], ids=["split", "cross_stitch"])
def test_encoders_that_share_in_stages(encoder):
    network = Network.build(DINO, encoder, Heads.Config(width=8), {"a": 2, "b": 1})
    final = network(torch.rand(1, 3, 48, 64)).final
    sum(x.square().mean() for x in final.values()).backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None]


def test_checkpoints_of_networks_in_one_piece(tmp_path):
    """As version 0.1 wrote them."""
    def build():
        return Network.build(DINO, Shared.Config(), Heads.Config(width=8), {"a": 2})

    torch.manual_seed(1)
    network = build()
    today = {name: module for name, module in network.named_modules() if type(module).__name__ == "EvaBlock"}
    assert len(today) == 5
    old = {}
    for name, value in network.state_dict().items():
        for number, place in enumerate(today):
            name = name.replace(f"{place}.", f"encoder.backbone.stages.0.network.model.blocks.{number}.")
        old[name.replace("encoder.backbone.stages.0.model.", "encoder.backbone.stages.0.network.model.")] = value
    assert not any(".stages.1." in name for name in old)
    torch.manual_seed(2)
    restored = build()
    fill(restored, old, "", tmp_path)
    found = restored.state_dict()
    assert all(torch.equal(x, found[name]) for name, x in network.state_dict().items())
