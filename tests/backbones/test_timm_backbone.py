"""timm networks: same numbers as timm's own feature extractors, exact parameter counts, honest strides, gradients."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import timm
import torch
from torch import nn

from polyptych.backbones.timm import Timm
from polyptych.decoders.heads import Heads
from polyptych.encoders.shared import Shared
from polyptych.errors import InputError
from polyptych.networks import Network

RESNET = Timm.Config(model="resnet18")
HRNET = Timm.Config(model="hrnet_w18_small_v2")
FAMILIES = [
    Timm.Config(model="test_resnet"),
    Timm.Config(model="resnet50", architecture="layers=(1, 2, 1, 2)", output_stride=8),
    HRNET,
    Timm.Config(model="test_convnext"),
    Timm.Config(model="test_efficientnet"),
    Timm.Config(model="mobilenetv3_small_050"),
    Timm.Config(model="regnety_002"),
    Timm.Config(model="densenet121", architecture="growth_rate=8, block_config=(2, 1, 2, 1)"),
    Timm.Config(model="test_vit"),
    Timm.Config(model="swin_tiny_patch4_window7_224",
                architecture="embed_dim=12, depths=(2, 1, 2, 2), num_heads=(1, 2, 2, 3)"),
]
REST = [
    RESNET,
    Timm.Config(model="resnet50", output_stride=8),
    Timm.Config(model="efficientnet_b0"),
    Timm.Config(model="densenet121"),
    Timm.Config(model="swin_tiny_patch4_window7_224"),
]
SLOW = [
    Timm.Config(model="convnext_tiny"),
    Timm.Config(model="convnext_atto", output_stride=16),
    Timm.Config(model="vit_tiny_patch16_224"),
    Timm.Config(model="vit_small_patch14_dinov2"),
    Timm.Config(model="deit3_small_patch16_224"),
    Timm.Config(model="vit_small_patch16_dinov3"),
    Timm.Config(model="swinv2_tiny_window8_256"),
    Timm.Config(model="twins_pcpvt_small"),
    Timm.Config(model="mobilevit_xxs"),
    Timm.Config(model="dpn68"),
    Timm.Config(model="focalnet_tiny_srf"),
    Timm.Config(model="pvt_v2_b0"),
    Timm.Config(model="xception41"),
    Timm.Config(model="test_maxvit"),
]
configs = pytest.mark.parametrize(
    "config", [*FAMILIES, *(pytest.param(c, marks=pytest.mark.grid) for c in REST),
               *(pytest.param(c, marks=pytest.mark.slow) for c in SLOW)],
    ids=lambda c: f"{c.model}-{c.output_stride}{'-small' if c.architecture else ''}")


@cache
def built(config: Timm.Config) -> Timm:
    torch.manual_seed(0)
    return config.build()


def reference(config: Timm.Config) -> nn.Module:
    """timm's own extractor with the same random weights, its options written down here independently."""
    options = eval(f"dict({config.architecture})")
    if config.output_stride != 32:
        options["output_stride"] = config.output_stride
    if config.model.startswith("hrnet"):
        options |= {"feature_location": "", "out_indices": (1, 2, 3, 4)}
    if config.model.startswith(("swin", "vit", "test_vit", "deit")):
        options["dynamic_img_size"] = True
    if "patch14" in config.model:
        options["patch_size"] = 16
    torch.manual_seed(0)
    return timm.create_model(config.model, features_only=True, **options)


def image_for(backbone: Timm, batch: int = 2) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(batch, 3, 2 * backbone.multiple, 3 * backbone.multiple)


@configs
@torch.no_grad()
def test_maps_equal_timm_bit_for_bit(config):
    config = replace(config, hrnet_fusion="nearest", swin_windows="timm")
    backbone, network = built(config).eval(), reference(config).eval()
    image = image_for(backbone)
    expected = network(image)
    if getattr(network, "output_fmt", None) == "NHWC":
        expected = [x.permute(0, 3, 1, 2) for x in expected]
    if backbone.pyramid is None:
        expected = [x for x in expected if x.shape[-1] * 4 <= image.shape[-1]]
        maps = backbone(image).maps
    else:  # the single map from which the pyramid is made
        state = image
        for stage in backbone.stages:
            state = stage(state)
        maps, expected = state if isinstance(state, list) else [state], expected[-1:]
    assert len(maps) == len(expected)
    assert all(torch.equal(x, y) for x, y in zip(maps, expected, strict=True))


@configs
@torch.no_grad()
def test_stages_one_by_one_give_the_same_pyramid(config):
    backbone = built(config).eval()
    image = image_for(backbone)
    states, state = [], image
    for stage in backbone.stages:
        state = stage(state)
        states.append(state)
        for part in [state] if isinstance(state, torch.Tensor) else state:
            assert part.ndim == 4 and part.shape[0] == len(image)
    assert all(torch.equal(x, y) for x, y in zip(backbone.features(states).maps, backbone(image).maps, strict=True))


@configs
@torch.no_grad()
def test_spec_and_odd_sizes(config):
    backbone = built(config)
    image = image_for(backbone)
    maps = backbone.eval()(image).maps
    assert tuple(x.shape[1] for x in maps) == backbone.spec.channels
    for x, stride in zip(maps, backbone.spec.strides, strict=True):
        assert (x.shape[2] * stride, x.shape[3] * stride) == tuple(image.shape[2:])
    assert backbone.spec.strides[0] == 4 and list(backbone.spec.strides) == sorted(backbone.spec.strides)
    assert backbone.spec.strides[-1] == config.output_stride
    network = Network.build(config, Shared.Config(), Heads.Config(width=8), {"depth": 1}).eval()
    for size in ((97, 130), (64, 96), (33, 31)):
        output = network(torch.rand(1, 3, *size))
        assert output.final["depth"].shape == (1, 1, *size) and output.final["depth"].isfinite().all()


@configs
def test_gradient_reaches_every_parameter(config):
    backbone = config.build()  # not the cached one: training moves the statistics of BatchNorm
    sum((x * torch.randn_like(x)).sum() for x in backbone(image_for(backbone)).maps).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in backbone.parameters())


@pytest.mark.parametrize(("config", "count"), [
    (HRNET, 3_860_720), (RESNET, 11_176_512), (Timm.Config(model="resnet50", output_stride=8), 23_508_032)])
def test_parameter_counts(config, count):
    assert sum(p.numel() for p in built(config).parameters()) == count


def test_hrnet_fusion_is_bilinear_unless_asked():
    network = reference(HRNET).eval()
    for module in network.modules():
        if isinstance(module, nn.Upsample):
            module.mode, module.align_corners = "bilinear", False
    backbone = built(HRNET).eval()
    image = image_for(backbone)
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(backbone(image).maps, network(image), strict=True))
    nearest = built(replace(HRNET, hrnet_fusion="nearest")).eval()
    assert not torch.equal(nearest(image).maps[0], backbone(image).maps[0])


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_dilation_as_published(model):
    """In a dilated layer, the formerly strided 3x3 convolution has half the layer's dilation, every other all of it."""
    backbone = built(Timm.Config(model=model, output_stride=8))
    for stage, dilation in ((3, 2), (4, 4)):
        kernels = [m for m in backbone.stages[stage].modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
        assert [m.dilation[0] for m in kernels] == [dilation // 2] + [dilation] * (len(kernels) - 1)
        assert all(m.padding == m.dilation and m.stride == (1, 1) for m in kernels)


def test_resnet_stages_are_the_layers_themselves():
    stages = built(RESNET).stages
    assert len(stages) == 5 and all(isinstance(stage, nn.Sequential) and len(stage) == 2 for stage in stages[1:])


def test_vit_prefix_tokens_travel_as_a_second_map():
    backbone = built(Timm.Config(model="test_vit")).eval()
    grid, prefix = backbone.stages[0](torch.rand(2, 3, 32, 64))
    assert grid.shape == (2, 64, 2, 4) and prefix.shape[:3] == (2, 64, 1)


def test_drop_path_acts_in_training_only():
    torch.manual_seed(0)
    backbone = Timm.Config(model="test_convnext", drop_path=0.9).build()
    for name, parameter in backbone.named_parameters():
        if name.endswith("gamma"):
            nn.init.ones_(parameter)
    image = image_for(backbone)
    assert not torch.equal(backbone(image).maps[-1], backbone(image).maps[-1])
    backbone.eval()
    assert torch.equal(backbone(image).maps[-1], backbone(image).maps[-1])


@pytest.mark.parametrize(("config", "said"), [
    (Timm.Config(model="resnet19"), "resnet18"),
    (Timm.Config(model="hrnet_w18_small_v2", output_stride=8), "output_stride 8"),
    (Timm.Config(model="swin_tiny_patch4_window7_224", output_stride=8), "output_stride"),
    (Timm.Config(model="hrnet_w18_small_v2", drop_path=0.1), "drop_path_rate 0.1"),
    (Timm.Config(drop_path=1.0), "[0, 1)"),
    (Timm.Config(model="resnet18.no_such_tag"), "no_such_tag"),
    (Timm.Config(model="inception_v3"), "any size"),
], ids=lambda value: value if isinstance(value, str) else value.model)
def test_refusals(config, said):
    with pytest.raises(InputError) as error:
        config.build()
    assert said in str(error.value) and "\n" not in str(error.value)
