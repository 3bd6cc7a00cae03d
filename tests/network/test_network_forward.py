"""The network around encoder and decoder: normalization, padding, cropping, dtypes, compilation, export."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from polyptych.backbones.timm import Timm
from polyptych.decoders._base import Decoder
from polyptych.decoders.heads import Heads
from polyptych.encoders._base import Encoder
from polyptych.encoders.shared import Shared
from polyptych.encoders.single import Single
from polyptych.networks import Network
from polyptych.types import Auxiliary, Features, Output, TaskFeatures

CHANNELS = {"semseg": 5, "depth": 1, "normals": 3}


class Probe(Encoder):
    """An encoder that hands the image on, at half size and as it is."""

    multiple, mean, std = 32, (0.5, 0.25, 0.125), (0.5, 0.25, 0.25)

    def forward(self, image):
        self.seen = image
        return TaskFeatures({"copy": Features((image,))}, shared=(image,))


class Echo(Decoder):
    def forward(self, features):
        full = features["copy"].maps[0]
        half = F.avg_pool2d(full, 2)
        return Output({"copy": half}, [Auxiliary({"copy": half}, weight=0.25)])


@pytest.fixture
def small() -> Network:
    torch.manual_seed(0)
    return Network.build(Timm.Config(model="test_resnet"), Shared.Config(), Heads.Config(width=16), CHANNELS)


def test_pads_by_repeating_the_border_and_normalizes():
    network = Network(Probe(), Echo())
    image = torch.rand(2, 3, 33, 70)
    network(image)
    seen = network.encoder.seen
    assert seen.shape == (2, 3, 64, 96)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (Probe.mean, Probe.std))
    assert torch.allclose(seen[..., :33, :70], (image - mean) / std)
    assert torch.equal(seen[..., 33:, :70], seen[..., 32:33, :70].expand(2, 3, 31, 70))
    assert torch.equal(seen[..., 70:], seen[..., 69:70].expand(2, 3, 64, 26))


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (97, 130), (64, 96)])
def test_any_size_even_smaller_than_its_padding(size):
    network = Network(Probe(), Echo())
    output = network(torch.rand(1, 3, *size))
    assert output.final["copy"].shape == (1, 3, *size)
    assert output.shared[0] is network.encoder.seen


def test_a_smooth_image_comes_back_in_place():
    """Half resolution, padding, enlarging, cropping: a ramp must return where it was, not shifted."""
    network = Network(Probe(), Echo())
    ramp = torch.linspace(0, 1, 97).view(1, 1, 97, 1).expand(1, 3, 97, 130)
    output = network(ramp).final["copy"]
    assert torch.allclose(output[..., 2:-2, :], network.normalize(ramp)[..., 2:-2, :], atol=1e-5)


def test_auxiliary_predictions_keep_their_size_unless_padded():
    network = Network(Probe(), Echo())
    exact, padded = network(torch.rand(1, 3, 64, 96)), network(torch.rand(1, 3, 60, 96))
    assert exact.auxiliary[0].prediction["copy"].shape == (1, 3, 32, 48)
    assert padded.auxiliary[0].prediction["copy"].shape == (1, 3, 60, 96)
    assert exact.auxiliary[0].weight == padded.auxiliary[0].weight == 0.25
    assert torch.equal(padded.auxiliary[0].prediction["copy"], padded.final["copy"])


def test_bytes_and_floats_give_the_same(small):
    image = torch.randint(0, 256, (1, 3, 40, 50), dtype=torch.uint8)
    small.eval()
    for task in CHANNELS:
        assert torch.allclose(small(image).final[task], small(image / 255).final[task], atol=1e-6)


def test_what_normalizes_is_saved_with_the_weights(small):
    assert {"mean", "std"} <= set(small.state_dict())
    other = Network(Probe(), Echo())
    other.load_state_dict({"mean": small.mean, "std": small.std})
    assert torch.equal(other.mean, small.mean)


def test_shared_is_the_cut(small):
    features = small.encoder(torch.rand(1, 3, 64, 64))
    assert features["depth"] is features["semseg"] and features.shared == features["depth"].maps
    single = Single.Config().build(backbone=Timm.Config(model="test_resnet"), tasks=("a", "b"))
    features = single(torch.rand(1, 3, 64, 64))
    assert features.shared == () and not torch.equal(features["a"].maps[0], features["b"].maps[0])


def test_channels_last_and_double_precision(small):
    small.eval()
    image = torch.rand(1, 3, 97, 130)
    expected = small(image).final["normals"]
    last = small.to(memory_format=torch.channels_last)(image.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(last.final["normals"], expected, atol=1e-4)
    double = small.double()(image).final["normals"]
    assert double.dtype == torch.float64 and torch.allclose(double.float(), expected, atol=1e-4)


def test_export_gives_the_same(small):
    small.eval()

    class Finals(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = small

        def forward(self, image):
            return self.network(image).final

    image = torch.rand(1, 3, 50, 70)
    exported = torch.export.export(Finals(), (image,)).module()
    with torch.no_grad():
        expected, got = small(image).final, exported(image)
    assert all(torch.allclose(expected[t], got[t], atol=1e-5) for t in CHANNELS)


COMPILE = """
import torch
from polyptych.backbones.timm import Timm
from polyptych.decoders.heads import Heads
from polyptych.encoders.shared import Shared
from polyptych.networks import Network
network = Network.build(Timm.Config(model="MODEL"), Shared.Config(), Heads.Config(), {"a": 2, "b": 1}).eval()
image = torch.rand(1, 3, 50, 70)
with torch.no_grad():
    compiled, eager = torch.compile(network, backend="eager", fullgraph=True)(image), network(image)
assert all(torch.allclose(compiled.final[t], eager.final[t], atol=1e-6) for t in "ab")
"""


@pytest.mark.slow
@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "hrnet_w18_small_v2"])
def test_one_graph_for_compilation(model):
    """The whole forward is one graph: nothing falls back to Python. (A process of its own, because the test suite
    checks annotations at every call, and that cannot be compiled.)"""
    subprocess.run([sys.executable, "-c", COMPILE.replace("MODEL", model)], check=True)
