"""Every encoder with every decoder becomes ONNX and agrees with the network: run over the catalogs.

The fast set is one pair at a fixed size with two tasks; the slow one is the whole grid, and further backbones.
"""

from __future__ import annotations

import pytest
import torch

from polyptych.backbones.segnet import SegNet
from polyptych.backbones.timm import Timm
from polyptych.decoders._base import CATALOG as DECODERS
from polyptych.encoders._base import CATALOG as ENCODERS
from polyptych.errors import InputError
from polyptych.export.comparison import compare
from polyptych.export.exporting import save
from polyptych.export.graph import Graph, capture
from polyptych.export.metadata import ExportMetadata
from polyptych.networks import Network
from polyptych.tasks._base import CATALOG as TASKS
from polyptych.types import LabelInfo

LABELS = {"semseg": LabelInfo(classes=tuple("abcde")), "depth": LabelInfo(unit="m"), "normals": LabelInfo()}
FAST = [("mtan", "pad_net")]  # (shared with heads is what the other tests export)
GRID = [(e, d) for e in ENCODERS.names() for d in DECODERS.names()]
BACKBONES = {
    "segnet": SegNet.Config(width=4, bottom_width=8), "hrnet": Timm.Config(model="hrnet_w18_small"),
    "vit": Timm.Config(model="test_vit"), "convnext": Timm.Config(model="test_convnext"),
    "swin": Timm.Config(model="swin_tiny_patch4_window7_224"), "efficientnet": Timm.Config(model="test_efficientnet"),
}


def agrees(backbone, encoder, decoder, size, path, format="onnx", tasks=tuple(LABELS)):
    torch.manual_seed(0)
    configs = {name: TASKS.load(name).Config() for name in tasks}
    channels = {name: config.build(labels=LABELS[name]).channels for name, config in configs.items()}
    try:
        network = Network.build(backbone.without_weights(), ENCODERS.load(encoder).Config(),
                                DECODERS.load(decoder).Config(), channels).eval()
    except InputError as error:
        if (encoder, decoder) in FAST:
            raise
        pytest.skip(f"not a network that polyptych builds: {error}")
    metadata = ExportMetadata(name="x", protocol="x", tasks=configs, labels={name: LABELS[name] for name in tasks},
                              mean=(0.0,) * 3, std=(1.0,) * 3, size=size, fixed=size is not None)
    program = capture(Graph(network, tasks, size))
    model = save(program, metadata, path / ("model.onnx" if format == "onnx" else "model.pt2"), format)
    differences = compare(model, network, 1e-4, size or (97, 130))
    assert set(differences) == set(tasks)


@pytest.mark.grid  # the file of a whole run is a fast test: test_exported_file.py
@pytest.mark.parametrize(("encoder", "decoder"), FAST)
def test_a_pair_at_a_fixed_size(encoder, decoder, tmp_path):
    agrees(Timm.Config(model="test_resnet"), encoder, decoder, (35, 50), tmp_path, tasks=("semseg", "depth"))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(35, 50), None], ids=["fixed", "dynamic"])
@pytest.mark.parametrize(("encoder", "decoder"), GRID)
def test_every_pair(encoder, decoder, size, tmp_path):
    agrees(Timm.Config(model=ENCODERS.load(encoder).example), encoder, decoder, size, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "architecture"), [
    ("swin_tiny_patch4_window7_224", "num_heads=(1, 2, 4, 8), embed_dim=12, depths=(2, 2, 2, 2)"),
    ("vit_small_patch16_dinov3", "embed_dim=48, num_heads=2, depth=4")], ids=["swin", "dinov3"])
@pytest.mark.parametrize(("encoder", "decoder"), [
    ("lora", "heads"), ("mtlora", "heads"), ("pgt", "pgt"), ("tit", "tit")])
def test_adapters(encoder, decoder, model, architecture, tmp_path):
    agrees(Timm.Config(model=model, architecture=architecture), encoder, decoder, (64, 96), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_family_of_backbones_at_a_fixed_size(backbone, format, tmp_path):
    agrees(BACKBONES[backbone], "shared", "heads", (64, 96), tmp_path, format)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", DECODERS.names())
def test_every_decoder_under_torch_export_at_any_size(decoder, tmp_path):
    agrees(Timm.Config(model="test_resnet"), "shared", decoder, None, tmp_path, "torch")
