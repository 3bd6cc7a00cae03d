"""A described network as a backbone: the same maps as the network it was written from, stage by stage and from the
command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from polyptych.backbones._base import CATALOG
from polyptych.backbones._caffe.layers import BatchNorm, Convolution, Eltwise, InnerProduct, Pooling, ReLU
from polyptych.backbones._caffe.module_layers import module_layers
from polyptych.backbones._caffe.network import LayerNetwork
from polyptych.backbones._caffe.prototxt import parse_prototxt, to_text
from polyptych.backbones._states import maps_of
from polyptych.backbones.prototxt import Prototxt, of_layers
from polyptych.cli import main
from polyptych.errors import InputError
from polyptych.networks import Network
from polyptych.prediction import load_network

PLAIN = {"act_layer": nn.ReLU}  # what AutoMTL's own file of MobileNetV2 has in the place of ReLU6
# Parameters of the whole network, as published (torchvision's and timm's tables, in millions 21.80, 3.50, 4.38).
PAPERS = {"resnet34": ({}, 21_797_672), "mobilenetv2_100": (PLAIN, 3_504_872), "mnasnet_100": ({}, 4_383_312)}


@pytest.mark.parametrize("model", ["mnasnet_100", *(pytest.param(name, marks=pytest.mark.slow) for name in (
    "resnet34", "mobilenetv2_100", "densenet121", "dla34", "regnetx_002", "resnet50", "hardcorenas_a"))])
@torch.no_grad()
def test_a_network_written_as_prototxt_and_read_back_is_the_network(model: str) -> None:
    options, published = PAPERS.get(model, ({}, 0))
    torch.manual_seed(0)
    original = timm.create_model(model, **options).eval()
    if model == "hardcorenas_a":  # its activations are not in the language, and that is said
        with pytest.raises(InputError, match="act_layer"):
            module_layers(original, (3, 224, 224))
        return
    text = to_text(module_layers(original, (3, 224, 224)), (3, 224, 224), model)
    network = LayerNetwork(parse_prototxt(text, model).define()).eval()
    assert not published or sum(p.numel() for p in network.parameters()) == published
    network.load_state_dict(original.state_dict())  # the very same names
    image = torch.randn(2, 3, 224, 224)
    assert torch.equal(network(image), original(image))


@pytest.fixture(scope="module")
def resnet(tmp_path_factory) -> tuple[Path, nn.Module]:
    """A small residual network as a file, and itself."""
    torch.manual_seed(1)
    original = timm.create_model("test_resnet").eval()
    path = tmp_path_factory.mktemp("prototxt") / "small.prototxt"
    path.write_text(to_text(module_layers(original, (3, 160, 160)), (3, 160, 160)))
    save_file(original.state_dict(), path.with_suffix(".safetensors"))
    return path, original


@torch.no_grad()
def test_the_pyramid_is_timms_with_the_same_weights(resnet) -> None:
    path, original = resnet
    backbone = Prototxt.Config(file=path, weights=path.with_suffix(".safetensors")).build().eval()
    features = timm.create_model("test_resnet", features_only=True).eval()
    features.load_state_dict(original.state_dict(), strict=False)
    timms = [(c, s) for c, s in zip(features.feature_info.channels(), features.feature_info.reduction(), strict=True)]
    assert list(zip(backbone.spec.channels, backbone.spec.strides, strict=True)) == [x for x in timms if x[1] >= 4]
    assert backbone.multiple == 32
    image = torch.randn(2, 3, 64, 96)
    maps = backbone(image).maps
    assert all(torch.equal(a, b) for a, b in zip(maps, features(image)[-len(maps):], strict=True))
    assert not any("fc" in name for name, _ in backbone.named_parameters())
    states = backbone.run(image)
    assert len(states) == len(backbone.stages) == len(maps)
    assert all(torch.equal(a, b) for a, b in zip(backbone.features(states).maps, maps, strict=True))


@torch.no_grad()
def test_taps_name_layers_and_what_later_stages_read_travels_along() -> None:
    layers = [Convolution("stem", num_output=4, kernel_size=3, stride=4, pad=1), ReLU("relu"),
              Convolution("down", num_output=6, kernel_size=2, stride=2), BatchNorm("bn"),
              Pooling("pool", bottom="data", pool="AVE", kernel_size=8, stride=8),
              Convolution("color", num_output=6, kernel_size=1), Eltwise("both", bottom=("bn", "color")),
              Pooling("all", global_pooling=True, pool="AVE"), InnerProduct("classes", num_output=5)]
    backbone = of_layers(layers, (3, 32, 32), taps=("down", "relu", "both")).eval()
    assert backbone.spec.channels == (4, 6, 6) and backbone.spec.strides == (4, 8, 8) and backbone.multiple == 8
    image = torch.randn(2, 3, 16, 24)
    relu, down, both = backbone(image).maps
    stem, second, third = backbone.stages
    assert torch.equal(relu, torch.relu(stem.stem(image))) and torch.equal(down, second.down(relu))
    assert torch.equal(both, third.bn(down) + third.color(third.pool(image)))
    assert [len(maps_of(state)) for state in backbone.run(image)] == [2, 2, 1]  # the image is read once more
    assert all(len(backbone.grids(state)) == 1 for state in backbone.run(image))
    default = of_layers(layers, (3, 32, 32))
    assert default.spec.strides == (4, 8) and "classes" not in dict(default.stages[-1].named_modules())


def test_a_network_with_several_outputs_gives_these() -> None:
    layers = [Convolution("a", num_output=4, kernel_size=2, stride=2), Convolution("b", num_output=5, kernel_size=1),
              Convolution("c", bottom="a", num_output=6, kernel_size=2, stride=2)]
    backbone = of_layers(layers)
    assert backbone.spec.channels == (5, 6) and backbone.spec.strides == (2, 4)


@pytest.mark.parametrize("encoder", ["shared", "mtan", *(pytest.param(name, marks=pytest.mark.slow) for name in (
    "single", "cross_stitch", "nddr", "split", "searched"))])
def test_every_way_of_sharing_takes_it(resnet, encoder: str) -> None:
    from polyptych.decoders._base import CATALOG as DECODERS
    from polyptych.encoders._base import CATALOG as ENCODERS

    network = Network.build(Prototxt.Config(file=resnet[0]), ENCODERS.load(encoder).Config(),
                            DECODERS.load("heads").Config(), {"semseg": 3, "depth": 1})
    output = network(torch.rand(2, 3, 70, 90))
    assert all(x.shape[2:] == (70, 90) for x in output.final.values())
    sum(x.mean() for x in output.final.values()).backward()


@pytest.mark.parametrize(("config", "said"), [
    ({}, "--backbone.file: got nothing"),
    ({"taps": ("layer9",)}, r"'layer9', which no layer makes"),
    ({"taps": ("fc",)}, r"'fc', shape .*--backbone.taps"),
    ({"text": 'input_dim: [1, 1, 8, 8] layer { name: "a" type: "ReLU" bottom: "data" }'}, "an input of 1 channels"),
    ({"text": 'input_dim: [1, 3, 9, 9] layer { name: "a" type: "Convolution" bottom: "data" convolution_param '
              '{ num_output: 2 kernel_size: 3 } }'}, "layers without any; needs a map"),
])
def test_what_cannot_be_a_backbone_is_refused(resnet, config: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Prototxt.Config(**({"file": resnet[0]} if "taps" in config else {}), **config).build()


def test_weights_of_another_network_are_refused(resnet, tmp_path: Path) -> None:
    save_file({"conv1.0.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match="'conv1"):
        Prototxt.Config(file=resnet[0], weights=tmp_path / "w.safetensors").build()


def test_it_is_in_the_catalog() -> None:
    assert "prototxt" in CATALOG.names()


@pytest.mark.slow
def test_from_the_command_line_and_again_without_the_file(resnet, tmp_path: Path, capsys) -> None:
    copy = tmp_path / "net.prototxt"
    copy.write_text(resnet[0].read_text())
    small = ["--steps", "1", "--batch-size", "2", "--size", "48", "64", "--dataset.size", "48", "64",
             "--dataset.val-frames", "1", "--dataset.test-frames", "1", "--monitoring.examples", "1",
             "--monitoring.trivial-samples", "2", "--loading.workers", "0", "--tasks", "semseg,depth"]
    run = tmp_path / "run"
    described = ["train", "rooms", "--backbone", "prototxt", "--backbone.file", str(copy)]
    assert main([*described, "--out", str(run), *small]) == 0
    copy.unlink()
    *_, network, step = load_network(run, "last")
    assert step == 1 and json.loads((run / "run.json").read_text())["run"]["backbone"]["file"] == str(copy)
    assert any("layer4" in name for name, _ in network.named_parameters())


def test_a_missing_file_is_one_line(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")  # whatever the width of the terminal, the path is not broken
    path = str(tmp_path / "a_folder_whose_name_is_longer_than_most_terminals_are_wide" / "none.prototxt")
    assert main(["train", "rooms", "--backbone", "prototxt", "--backbone.file", path, "--out", "x"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and path in said and "No such file" in said
    with pytest.raises(SystemExit):
        main(["train", "rooms", "--backbone", "prototxt", "--help"])
    assert "--backbone.text" not in capsys.readouterr().out
