"""One image whose coarsest map is a single position: decoders train on it, backbones with BatchNorm refuse it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from polyptych.backbones.timm import Timm
from polyptych.decoders._base import CATALOG, Decoder
from polyptych.decoders.heads import KINDS, Heads
from polyptych.encoders.shared import Shared
from polyptych.errors import InputError
from polyptych.networks import Network, normalizing
from polyptych.recipes.rooms import rooms
from polyptych.training import Trainer
from trying_decoders import narrow

DECODERS = [narrow(name) for name in CATALOG.names() if name not in ("heads", "task_prompter")]


@pytest.mark.parametrize(("decoder", "pyramid"), [
    pytest.param(decoder, pyramid, id=f"{pyramid}-{decoder.name}-{getattr(decoder, 'head', '')}",
                 marks=[pytest.mark.grid] * ((number + (pyramid == "taps")) % 2))
    for number, decoder in enumerate([*(Heads.Config(head=kind, width=8) for kind in KINDS), *DECODERS])
    for pyramid in ("taps", "simple")])
def test_trains(decoder: Decoder.Config, pyramid):
    torch.manual_seed(0)
    network = Network.build(Timm.Config(model="test_vit", vit_pyramid=pyramid), Shared.Config(), decoder,
                            {"semseg": 3, "depth": 1}).train()
    side = 16 if pyramid == "taps" else 32
    output = network(torch.rand(1, 3, side, side))
    sum(x.square().sum() for x in output.final.values()).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("model", ["test_resnet", "hrnet_w18_small", "test_efficientnet", "regnety_002"])
def test_a_backbone_that_cannot_is_refused_before_training(tmp_path, model):
    """One image that is as small as the stride of the coarsest map; two of them, or a larger one, are fine."""
    run = replace(rooms(), backbone=Timm.Config(model=model), size=(32, 32), batch_size=1)
    with pytest.raises(InputError, match=r"one image of 32x32 in a forward pass.*raise --batch-size to 2") as error:
        Trainer(run, tmp_path / "run", resume=False)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize("layer", [nn.BatchNorm2d(3), nn.InstanceNorm2d(3), nn.GroupNorm(3, 3), nn.SyncBatchNorm(3),
                                   BatchNormAct2d(3)])
def test_every_layer_that_needs_several_values_is_explained(layer):
    with pytest.raises(InputError, match=r"one image of 1x1 .* a single value"), normalizing(1, (1, 1)):
        layer.train()(torch.rand(1, 3, 1, 1))
    with pytest.raises(ValueError, match=r"^another"), normalizing(1, (1, 1)):
        raise ValueError("another error")
