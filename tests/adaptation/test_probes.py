"""Linear probes, DPT and bins of depth on the tokens of a transformer."""

from __future__ import annotations

import pytest
import torch

from polyptych.backbones.timm import Timm
from polyptych.decoders._probes import Binned, ProbeHead
from polyptych.decoders.heads import Heads
from polyptych.encoders._base import CATALOG as ENCODERS
from polyptych.errors import InputError
from polyptych.networks import Network
from polyptych.types import FeatureSpec

DINO = Timm.Config(model="vit_small_patch16_dinov3", architecture="embed_dim=48, num_heads=2, depth=4",
                   vit_pyramid="taps", freeze="all")
SPEC = FeatureSpec((48,) * 4, (16,) * 4)


def test_a_probe_is_a_norm_and_a_matrix():
    torch.manual_seed(0)
    head = ProbeHead(FeatureSpec((384,), (16,)), 150)
    assert sum(p.numel() for p in head.parameters()) == 2 * 384 + 384 * 150 + 150
    assert 0.009 < float(head.predict.weight.std()) < 0.011 and not head.predict.bias.any()


def test_bins_are_a_mean_of_evenly_spaced_depths():
    head = Binned(torch.nn.Identity(), 4, 1.0, 4.0, "value")
    x = torch.tensor([-5.0, 0.9, 1.9, 0.0]).view(1, 4, 1, 1)  # weights 0.1, 1, 2, 0.1
    assert float(head(x)) == pytest.approx((0.1 * 1 + 1 * 2 + 2 * 3 + 0.1 * 4) / 3.2)
    head.form = "logarithm"
    assert float(head(x).exp()) == pytest.approx((0.1 * 1 + 1 * 2 + 2 * 3 + 0.1 * 4) / 3.2)


@pytest.mark.parametrize("head", ["dpt", "probe"])
def test_on_a_frozen_transformer(head):
    torch.manual_seed(0)
    network = Network.build(DINO, ENCODERS.load("shared").Config(), Heads.Config(head=head, width=16, bins=32),
                            {"semseg": 5, "depth": 1}).train()
    output = network(torch.rand(2, 3, 96, 128))
    assert output.final["semseg"].shape == (2, 5, 96, 128) and output.final["depth"].shape == (2, 1, 96, 128)
    assert 0.001 < float(output.final["depth"].min()) <= float(output.final["depth"].max()) < 10
    sum(x.mean() for x in output.final.values()).backward()
    assert not [name for name, p in network.named_parameters() if p.requires_grad and p.grad is None]


def test_dpt_reassembles_four_strides():
    from polyptych.decoders._probes import DPTHead
    head, sizes = DPTHead(SPEC, 3, 16), []
    for layer in head.resample:
        layer.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    x = head(tuple(torch.rand(1, 48, 4, 6) for _ in range(4)))
    assert sizes == [(8, 16, 24), (16, 8, 12), (32, 4, 6), (64, 2, 3)] and x.shape == (1, 3, 64, 96)


@pytest.mark.parametrize(("options", "where"), [
    ({"bins": 1}, "decoder.bins"), ({"bins": 8, "bins_range": (2.0, 1.0)}, "decoder.bins"),
    ({"bins": 8, "binned": ("semseg",)}, "decoder.binned")])
def test_refusals(options, where):
    with pytest.raises(InputError, match=where):
        Heads.Config(head="probe", **options).build(features={"semseg": SPEC, "depth": SPEC},
                                                    channels={"semseg": 5, "depth": 1})
