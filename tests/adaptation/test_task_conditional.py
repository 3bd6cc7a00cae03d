"""PGT and TIT: parameters against the authors' tables. (Their outputs: tests/published/test_fixtures.py.)"""

from __future__ import annotations

import pytest
import torch

from polyptych.backbones.timm import Timm
from polyptych.decoders._base import CATALOG as DECODERS
from polyptych.decoders.pgt import PGTDecoder
from polyptych.devices import shapes_only
from polyptych.encoders._base import CATALOG as ENCODERS
from polyptych.encoders.pgt import PGT
from polyptych.encoders.tit import TIT
from polyptych.errors import InputError
from polyptych.networks import Network

NYUD = {"semseg": 40, "normals": 3, "edge": 1, "depth": 1}
SWIN = "swin_tiny_patch4_window7_224"
EVA = Timm.Config(model="vit_small_patch16_dinov3", architecture="embed_dim=48, num_heads=2, depth=4")


def small(width: int) -> Timm.Config:
    return Timm.Config(model=SWIN, image_size=(96, 128), swin_windows="published", architecture=f"embed_dim={width}, "
                       "depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8)")


@pytest.mark.parametrize(("kind", "total"), [("pgt", 28_429_569), ("tit", 30_898_399)])
@shapes_only()
def test_published_counts(kind, total):
    backbone = Timm.Config(model=SWIN, image_size=(448, 576), swin_windows="published")
    network = Network.build(backbone, ENCODERS.load(kind).Config(), DECODERS.load(kind).Config(), NYUD)
    assert sum(p.numel() for p in network.parameters()) == total
    parts = {"decoder": sum(p.numel() for p in network.decoder.parameters() if p.requires_grad)
             - sum(p.numel() for p in network.decoder.heads.parameters()),
             "heads": sum(p.numel() for p in network.decoder.heads.parameters()),
             "adapting": sum(p.numel() for p in network.parameters() if getattr(p, "adapts", False))}
    assert parts == {"pgt": {"decoder": 641_538, "heads": 93_573, "adapting": 192_000},
                     "tit": {"decoder": 1_514_944, "heads": 93_573, "adapting": 1_772_064}}[kind]


@pytest.mark.parametrize("kind", ["pgt", "tit"])
@pytest.mark.parametrize("backbone", [small(12), Timm.Config(model="test_vit"), EVA], ids=["swin", "vit", "dinov3"])
def test_every_task_has_a_pass_of_its_own(kind, backbone):
    torch.manual_seed(0)
    network = Network.build(backbone, ENCODERS.load(kind).Config(), DECODERS.load("heads").Config(), {"a": 2, "b": 1})
    features = network.encoder(torch.rand(2, 3, 96, 128))
    assert all(not torch.equal(x, y) for x, y in zip(features["a"].maps, features["b"].maps, strict=True)
               if kind == "tit" or x is not features["a"].maps[0])
    parameters = dict(network.encoder.named_parameters())
    gradients = torch.autograd.grad(features["a"].maps[-1].square().sum(), parameters.values(), allow_unused=True)
    reached = {name for name, x in zip(parameters, gradients, strict=True) if x is not None and x.any()}
    assert any(name.endswith((".a", ".a.weight")) for name in reached)
    assert not any(name.endswith((".b", ".b.weight")) for name in reached)


def test_prompts_are_not_turned():
    """Rotary positions are those of patches, with prompts before them as without."""
    encoder = PGT.Config(prompts=3).build(backbone=EVA, tasks=("a",)).eval()
    assert all(block.attn.inner.num_prefix_tokens == 8 for stage in list(encoder.backbone.stages)[1:]
               for block in stage.blocks)


def test_heads_that_do_not_divide_the_width():
    with pytest.raises(InputError, match=r"decoder\.attention_heads"):
        Network.build(small(16), PGT.Config(), PGTDecoder.Config(attention_heads=(6, 3)), NYUD)


@pytest.mark.parametrize(("config", "where"), [
    (PGT.Config(prompts=0), "encoder.prompts"), (TIT.Config(down=0), "encoder.down"),
    (TIT.Config(down=8, reduction=4), "encoder.down")])
def test_refusals(config, where):
    with pytest.raises(InputError, match=where):
        config.build(backbone=small(12), tasks=("a",))


@pytest.mark.parametrize("kind", ["pgt", "tit"])
def test_networks_without_blocks_are_refused(kind):
    with pytest.raises(InputError, match=r"--backbone\.model"):
        ENCODERS.load(kind).Config().build(backbone=Timm.Config(model="test_resnet"), tasks=("a",))
