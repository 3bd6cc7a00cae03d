"""A described network as a backbone: the same maps as the network it was written from, stage by stage and from the
command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from layer_lists import whole_network
from safetensors.torch import save_file
from torch import nn

from polyptych.backbones._base import CATALOG
from polyptych.backbones._caffe.layers import BatchNorm, Convolution, Eltwise, InnerProduct, Pooling, ReLU
from polyptych.backbones._caffe.module_layers import module_layers
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
    network = whole_network(parse_prototxt(text, model).define()).eval()
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


def deeplab(rounding: str = "CEIL", last: tuple[Convolution, ...] = ()) -> list:
    """A small network that begins and ends as AutoMTL's deeplab_resnet34 does: pooling rounds up, dilation at the end,
    no classifier."""
    def block(name: str, bottom: str, channels: int, stride: int = 1, dilation: int = 1) -> list:
        short = [] if stride == 1 and dilation == 1 else [
            Convolution(f"{name}.short", bottom=bottom, num_output=channels, kernel_size=1, stride=stride)]
        return [*short, Convolution(f"{name}.a", bottom=bottom, num_output=channels, kernel_size=3, stride=stride,
                                    pad=dilation, dilation=dilation), ReLU(f"{name}.relu"),
                Convolution(f"{name}.b", num_output=channels, kernel_size=3, pad=dilation, dilation=dilation),
                Eltwise(f"{name}.sum", bottom=(f"{name}.b", f"{name}.short" if short else bottom))]

    return [Convolution("conv1", num_output=4, kernel_size=7, stride=2, pad=3), BatchNorm("bn1"), ReLU("relu1"),
            Pooling("pool1", kernel_size=3, stride=2, pad=1, round_mode=rounding), *block("one", "pool1", 4),
            *block("two", "one.sum", 6, stride=2), *block("three", "two.sum", 8, dilation=2), *last]


@pytest.mark.parametrize("size", [(64, 96), (72, 40)])
@torch.no_grad()
def test_pooling_that_rounds_up_keeps_the_whole_network(size: tuple[int, int]) -> None:
    """Its maps have one row and one column beyond the image; the rest lies where that of the described network does."""
    backbone = of_layers(deeplab()).eval()
    assert backbone.spec.channels == (4, 8) and backbone.spec.strides == (4, 8) and backbone.multiple == 8
    named = dict(backbone.named_parameters())
    assert sum("weight" in name for name in named) == 10  # nine convolutions and a norm: nothing is left out
    described = whole_network(parse_prototxt(to_text(deeplab(), (3, 224, 224)), "whole").define()).eval()
    weights = {name: value for stage in backbone.stages for name, value in stage.state_dict().items()}
    described.load_state_dict(weights)
    image = torch.randn(2, 3, *size)
    whole, found = described(image), backbone(image).maps[-1]
    down, across = size[0] // 8, size[1] // 8
    assert whole.shape[2:] == (down + 1, across + 1) and torch.equal(found, whole[..., :down, :across])
    assert backbone(image).maps[0].shape[2:] == (size[0] // 4, size[1] // 4)
    plain = of_layers(deeplab("FLOOR"))
    assert plain.spec == backbone.spec and plain(image).maps[-1].shape == found.shape


@pytest.mark.parametrize("encoder", ["shared", "mtan", "cross_stitch", "nddr", "split", "searched"])
def test_every_way_of_sharing_takes_maps_that_reach_beyond(encoder: str) -> None:
    from polyptych.decoders._base import CATALOG as DECODERS
    from polyptych.encoders._base import CATALOG as ENCODERS

    network = Network.build(Prototxt.Config(text=to_text(deeplab(), (3, 224, 224))), ENCODERS.load(encoder).Config(),
                            DECODERS.load("heads").Config(), {"semseg": 3, "depth": 1})
    output = network(torch.rand(2, 3, 70, 90))
    assert all(x.shape[2:] == (70, 90) for x in output.final.values())


@pytest.mark.parametrize(("layers", "said"), [
    (deeplab(last=(Convolution("fc6", num_output=8, kernel_size=7),)), r"'fc6' after 'three.sum'.*--backbone.taps one"),
    ([Convolution("a", num_output=4, kernel_size=3, stride=2, pad=1), Convolution("b", num_output=4, kernel_size=3),
      Convolution("c", num_output=4, kernel_size=3)], "'b' after 'a', the last map with a whole stride"),
    ([Convolution("a", num_output=4, kernel_size=2, stride=2), Convolution("b", num_output=4, kernel_size=3, stride=3)],
     "'b' after 'a'"),
    ([Convolution("a", num_output=4, kernel_size=2, stride=2),
      Convolution("b", num_output=4, kernel_size=3, stride=2, pad=3)], "'b' after 'a'")])
def test_a_part_is_never_taken_for_the_whole(layers: list, said: str) -> None:
    """Convolutions that lose pixels, or gain them on both sides, after the last map with a whole stride."""
    with pytest.raises(InputError, match=said):
        of_layers(layers)
    named = of_layers(layers, taps=("three.sum" if len(layers) > 9 else "a",))
    assert len(named.spec.strides) == 1


def test_a_classifier_of_convolutions_is_left_out() -> None:
    """After global pooling there are no maps any more: what follows has nothing to give to a pyramid."""
    backbone = of_layers([*deeplab(), Pooling("all", global_pooling=True, pool="AVE"),
                          Convolution("classes", num_output=5, kernel_size=1)])
    assert backbone.spec.strides == (4, 8) and not any("classes" in name for name, _ in backbone.named_parameters())


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
