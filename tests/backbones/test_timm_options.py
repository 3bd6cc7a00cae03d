"""What published networks have and timm has not: tables of positions and maps of the images' size, norms, momentum."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from polyptych.backbones.timm import Timm
from polyptych.decoders.ema_net import EMANet
from polyptych.decoders.heads import Heads
from polyptych.devices import shapes_only
from polyptych.encoders._base import Encoder
from polyptych.encoders.cross_stitch import CrossStitch
from polyptych.encoders.mtan import Mtan
from polyptych.encoders.nddr import Nddr
from polyptych.encoders.shared import Shared
from polyptych.encoders.split import Split
from polyptych.errors import InputError
from polyptych.networks import Network

HRNET = Timm.Config(model="hrnet_w18_small_v2", pad=False)
SWIN, SMALL = "swin_tiny_patch4_window7_224", "embed_dim=12, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 3)"


@torch.no_grad()
def test_a_table_of_positions_of_other_images_is_loaded_as_it_is(tmp_path):
    torch.manual_seed(0)
    whole = timm.create_model("test_vit", img_size=(64, 96), dynamic_img_size=True).eval()
    save_file({k: v.clone() for k, v in whole.state_dict().items()}, tmp_path / "w.safetensors")
    config = Timm.Config(model="test_vit", vit_pyramid="taps", image_size=(64, 96), weights=tmp_path / "w.safetensors")
    backbone = config.build().eval()
    assert torch.equal(backbone.stages[0].model.pos_embed, whole.pos_embed)
    image = torch.rand(1, 3, 64, 96)
    last = whole.forward_intermediates(image, norm=False, intermediates_only=True)[-1]
    expected = whole.norm(last.permute(0, 2, 3, 1))
    assert torch.allclose(backbone(image).maps[-1], expected.permute(0, 3, 1, 2), atol=1e-5)
    assert backbone(torch.rand(1, 3, 32, 64)).maps[-1].shape[2:] == (2, 4)


def test_maps_can_be_normalized():
    torch.manual_seed(0)
    config = Timm.Config(model=SWIN, architecture=SMALL)
    plain, normed = config.build().eval(), replace(config, norm_maps=True).build().eval()
    assert sum(p.numel() for p in normed.parameters()) - sum(p.numel() for p in plain.parameters()) == 2 * 12 * 15
    normed.load_state_dict(plain.state_dict(), strict=False)
    for norm in normed.norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    image = torch.rand(1, 3, 64, 96)
    for x, y, norm in zip(plain(image).maps, normed(image).maps, normed.norms, strict=True):
        centered = x - x.mean(1, keepdim=True)
        unit = centered / (centered.square().mean(1, keepdim=True) + 1e-5).sqrt()
        assert torch.allclose(y, unit * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1), atol=1e-4)
    sum(y.square().sum() for y in normed(image).maps).backward()
    assert all(p.grad is not None for p in normed.parameters())


def test_momentum_of_running_statistics():
    def momenta(**options) -> set[float]:
        backbone = Timm.Config(model="hrnet_w18_small_v2", **options).build()
        return {m.momentum for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)}

    assert momenta() == {0.1} and momenta(batch_norm_momentum=0.01) == {0.01}


def plain_fusion(modules: nn.Module, maps: list[Tensor]) -> list[Tensor]:
    for module in modules:
        maps = [branch(x) for branch, x in zip(module.branches, maps, strict=True)]
        joined = []
        for i, x in enumerate(maps):
            total = torch.zeros_like(x)
            for j, y in enumerate(maps):
                if j > i:
                    convolution, norm, _ = module.fuse_layers[i][j]
                    y = F.interpolate(norm(convolution(y)), size=x.shape[2:], mode="bilinear", align_corners=False)
                else:
                    y = module.fuse_layers[i][j](y)
                total = total + y
            joined.append(total.relu())
        maps = joined
    return maps


@torch.no_grad()
def test_an_hrnets_branches_cover_images_of_any_size():
    torch.manual_seed(0)
    backbone = HRNET.build().eval()
    image = torch.rand(1, 3, 75, 133)
    assert [tuple(x.shape[2:]) for x in backbone(image).maps] == [
        (math.ceil(75 / s), math.ceil(133 / s)) for s in (4, 8, 16, 32)]
    state = backbone.stages[1](backbone.stages[0](image))
    stage = backbone.stages[2]
    expected = plain_fusion(stage.branches, [step(state) for step in stage.transition])
    for x, y in zip(stage(state), expected, strict=True):
        assert torch.allclose(x, y, atol=1e-5)


@torch.no_grad()
def test_a_published_size_gives_the_published_grid():
    network = Network.build(HRNET, Shared.Config(), EMANet.Config(size=(425, 560)), {"depth": 1}).eval()
    assert network.decoder.refine.affinity.filters.grid == (107, 140)
    output = network(torch.rand(1, 3, 425, 560))
    assert output.final["depth"].shape == (1, 1, 425, 560)
    assert output.auxiliary[0].prediction["depth"].shape[2:] == (107, 140)


def test_position_wise_filters_fit_what_the_network_sees():
    """MaxViT wants multiples of 224, so images of 288x384 become 448x448."""
    backbone = Timm.Config(model="maxvit_tiny_tf_224", architecture="embed_dim=(32, 32, 32, 32), depths=(1, 1, 1, 1), "
                           "stem_width=32")
    network = Network.build(backbone, Shared.Config(), EMANet.Config(size=(288, 384)), {"depth": 1})
    assert network.encoder.multiple == 224 and network.decoder.refine.affinity.filters.grid == (112, 112)


ENCODERS = [Shared.Config(), Mtan.Config(), Nddr.Config(), CrossStitch.Config(), Split.Config()]
AS_THEY_ARE = [*(("test_resnet", encoder) for encoder in ENCODERS), *((SWIN, encoder) for encoder in ENCODERS),
               ("hrnet_w18_small_v2", Shared.Config()), ("hrnet_w18_small_v2", Mtan.Config())]
REST = [("resnet18", Mtan.Config()), *(("hrnet_w18_small_v2", encoder) for encoder in ENCODERS[2:])]


@pytest.mark.parametrize(("model", "encoder"), [
    *AS_THEY_ARE, *(pytest.param(*pair, marks=pytest.mark.grid) for pair in REST)],
    ids=lambda value: value if isinstance(value, str) else type(value).__qualname__)
@torch.no_grad()
def test_every_encoder_takes_images_as_they_are(encoder: Encoder.Config, model):
    backbone = Timm.Config(model=model, architecture=SMALL if model == SWIN else "", pad=False)
    network = Network.build(backbone, encoder, Heads.Config(width=8),
                            {"depth": 1, "semseg": 3}).eval()
    output = network(torch.rand(1, 3, 75, 101))
    assert all(x.shape[2:] == (75, 101) and x.isfinite().all() for x in output.final.values())


@pytest.mark.parametrize(("options", "said"), [
    ({"model": "test_vit", "pad": False}, "backbone.pad"),
    ({"model": "test_convnext", "pad": False}, "cannot take"),
    ({"model": "resnet18", "image_size": (64, 96)}, "img_size"),
    ({"model": "resnet18", "batch_norm_momentum": 0.0}, "(0, 1]"),
    ({"model": "resnet18", "batch_norm_momentum": float("nan")}, "(0, 1]")])
def test_refusals(options, said):
    with pytest.raises(InputError) as error:
        Timm.Config(**options).build()
    assert said in str(error.value) and "\n" not in str(error.value)


def test_shapes_alone_are_those_of_the_network() -> None:
    with shapes_only():
        hollow = timm.create_model("test_vit", features_only=True)
        torch.manual_seed(0)
        filled = torch.empty(3, device="cpu").uniform_()
    whole = timm.create_model("test_vit", features_only=True)
    assert {name: x.shape for name, x in hollow.state_dict().items()} == {
        name: x.shape for name, x in whole.state_dict().items()}
    assert all(p.is_meta for p in hollow.parameters())
    torch.manual_seed(0)
    assert filled.equal(torch.rand(3)), "only what has no values is left alone"
