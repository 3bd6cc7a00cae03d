"""The maps of a plain vision transformer after each quarter of its blocks, against the complete timm model."""

from __future__ import annotations

import pytest
import timm
import torch
from safetensors.torch import save_file

from polyptych.backbones.timm import Timm
from polyptych.decoders.heads import Heads
from polyptych.devices import shapes_only
from trying_encoders import names, network_or_skip

TAPS = Timm.Config(model="test_vit", vit_pyramid="taps")


@pytest.mark.parametrize(("model", "after"), [
    ("test_vit", (2, 3, 4, 6)),  # quarters of six blocks, rounded to even
    pytest.param("vit_tiny_patch16_224", (3, 6, 9, 12), marks=pytest.mark.slow),
    pytest.param("vit_small_patch14_dinov2", (3, 6, 9, 12), marks=pytest.mark.slow),
    pytest.param("vit_small_patch16_dinov3", (3, 6, 9, 12), marks=pytest.mark.slow)])  # runs in one piece
@torch.no_grad()
def test_are_the_models_own_and_the_last_one_is_normed(model, after, tmp_path):
    torch.manual_seed(3)
    options = {"patch_size": 16} if "patch14" in model else {}
    whole = timm.create_model(model, dynamic_img_size=True, **options).eval()
    if isinstance(whole.norm, torch.nn.LayerNorm):
        torch.nn.init.normal_(whole.norm.weight)  # not what a fresh norm is
        torch.nn.init.normal_(whole.norm.bias)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    backbone = Timm.Config(model=model, vit_pyramid="taps", weights=tmp_path / "w.safetensors").build().eval()
    image = torch.rand(2, 3, 96, 128)
    indices = [number - 1 for number in after]
    raw = whole.forward_intermediates(image, indices=indices, norm=False, intermediates_only=True)
    normed = whole.forward_intermediates(image, indices=indices, norm=True, intermediates_only=True)
    maps = backbone(image).maps
    assert len(maps) == 4 and backbone.multiple == 16
    for x, expected in zip(maps, (*raw[:3], normed[3]), strict=True):
        assert torch.allclose(x, expected, atol=1e-6)
    assert not torch.allclose(raw[3], normed[3], atol=1e-2)
    width = whole.embed_dim
    assert backbone.spec.channels == (width,) * 4 and backbone.spec.strides == (16,) * 4
    classifier = {"head.weight", "head.bias", "fc_norm.weight", "fc_norm.bias"}
    rest = sum(p.numel() for name, p in whole.named_parameters() if name not in classifier)
    assert sum(p.numel() for p in backbone.parameters()) == rest


def test_vit_large_is_as_large_as_published():
    """303.7 M with the position table of 384x384."""
    with shapes_only():
        whole = timm.create_model("vit_large_patch16_384", num_classes=0)
    assert sum(p.numel() for p in whole.parameters()) == 303_690_752


def test_the_option_is_nothing_to_other_networks():
    taps, plain = (Timm.Config(model="test_resnet", vit_pyramid=kind).build() for kind in ("taps", "simple"))
    assert taps.spec == plain.spec and taps.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("encoder", names())
def test_any_encoder_runs_on_them(encoder):
    network = network_or_skip(TAPS, encoder, Heads.Config(width=4), {"depth": 1, "normals": 3})
    final = network(torch.rand(2, 3, 33, 50)).final
    assert final["normals"].shape == (2, 3, 33, 50)
    sum(x.square().mean() for x in final.values()).backward()
    unread = "encoder.backbone.stages.4.blocks.1.mlp.fc2.lora_shared_"  # MTLoRA's last common update: heads read others
    assert [name for name, p in network.named_parameters()
            if p.requires_grad and p.grad is None and not name.startswith(unread)] == []
