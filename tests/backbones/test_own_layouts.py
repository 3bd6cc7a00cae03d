"""`--backbone.weights` reads files as their authors lay them out: the same network, whatever its tensors are called."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from polyptych.backbones._freezing import arguments
from polyptych.backbones._own_layouts import block_order, in_timms_names
from polyptych.backbones.segnet import SegNet
from polyptych.backbones.timm import Timm
from polyptych.devices import shapes_only
from polyptych.errors import InputError

SWIN, VIT = "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"
SMALL = {SWIN: "embed_dim=12, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 3)", "resnet50c": "layers=(1, 2, 1, 1)"}
"""Arguments that leave a model's layout as it is; transformers get those of :data:`TRANSFORMER`."""
BLOCKS, WIDTH, HEADS = 6, 48, 3
TRANSFORMER = f"depth={BLOCKS}, embed_dim={WIDTH}, num_heads={HEADS}"


def architecture(model: str) -> str:
    return SMALL.get(model, TRANSFORMER)


def pretrained(model: str) -> dict[str, Tensor]:
    """A timm model's tensors, all of them random."""
    torch.manual_seed(0)
    state = timm.create_model(model, **arguments(architecture(model))).state_dict()
    return {name: torch.rand_like(value) if value.is_floating_point() else value for name, value in state.items()}


def from_file(path: Path, model: str, **options: object) -> Timm:
    return Timm(Timm.Config(model=model, architecture=architecture(model), weights=path,
                            **options)).eval()  # type: ignore[arg-type]


def same(one: Timm, other: Timm) -> None:
    found = other.state_dict()
    for name, value in one.state_dict().items():
        if not name.startswith(("norms", "pyramid")):  # what timm does not have begins anew
            assert torch.equal(value, found[name]), name


def as_timm(state: dict[str, Tensor], path: Path, model: str, **options: object) -> Timm:
    save_file({name: value.contiguous() for name, value in state.items()}, path / "timm.safetensors")
    return from_file(path / "timm.safetensors", model, **options)


def channel_order(merging: Tensor) -> Tensor:
    """Columns as an unfold has them, channel by channel; the inverse of what is imported."""
    places = merging.unflatten(-1, (2, 2, -1))  # column, row, channel
    return places.movedim(-1, -3).transpose(-2, -1).flatten(-3)


def test_the_order_of_merged_patches() -> None:
    """mmsegmentation unfolds the map; timm takes (row, column) offsets (0, 0), (1, 0), (0, 1), (1, 1)."""
    channels, image = 3, torch.rand(1, 3, 4, 6)
    weight, bias = torch.rand(5, 4 * channels), torch.rand(4 * channels)
    unfolded = torch.nn.functional.unfold(image, 2, stride=2).transpose(1, 2)
    offsets = torch.cat([image[:, :, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))], dim=1)
    merged = offsets.flatten(2).transpose(1, 2)
    torch.testing.assert_close(unfolded @ weight.t(), merged @ block_order(weight).t())
    torch.testing.assert_close((unfolded * bias).sum(-1), (merged * block_order(bias)).sum(-1))
    assert torch.equal(block_order(channel_order(weight)), weight)


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone."])
def test_swin_of_mmsegmentation_with_the_norms_of_its_maps(prefix: str, tmp_path: Path) -> None:
    state = pretrained(SWIN)
    file: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith(("norm.", "head.")):
            continue
        name = name.replace("patch_embed.proj", "patch_embed.projection").replace("layers.", "stages.")
        name = re.sub(r"attn\.(qkv|proj|relative)", r"attn.w_msa.\1", name)
        name = name.replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1")
        if found := re.fullmatch(r"stages\.(\d)\.downsample\.(.*)", name):
            name, value = f"stages.{int(found[1]) - 1}.downsample.{found[2]}", channel_order(value)
        file[prefix + name] = value
    norms = {f"norm{level}.{end}": torch.rand(12 * 2**level) for level in range(4) for end in ("weight", "bias")}
    torch.save({"state_dict": file | {prefix + name: value for name, value in norms.items()} | {
        "decode_head.conv.weight": torch.zeros(3)}}, tmp_path / "upernet.pth")
    found = from_file(tmp_path / "upernet.pth", SWIN, norm_maps=True)
    same(as_timm(state, tmp_path, SWIN), found)
    assert found.norms is not None and "mmsegmentation" in found.loaded
    for name, value in norms.items():
        level, end = re.fullmatch(r"norm(\d)\.(\w+)", name).groups()  # type: ignore[union-attr]
        assert torch.equal(found.norms.state_dict()[f"{level}.{end}"], value)


def test_swin_of_microsoft_for_dense_prediction(tmp_path: Path) -> None:
    """Merging ends a stage there; the output norms belong to the maps."""
    state = pretrained(SWIN)
    file = {}
    for name, value in state.items():
        if not name.startswith(("norm.", "head.")):
            theirs = re.sub(r"layers\.(\d)\.downsample", lambda at: f"layers.{int(at[1]) - 1}.downsample", name)
            file[theirs] = value
    norms = {f"norm{level}.{end}": torch.rand(12 * 2**level) for level in range(4) for end in ("weight", "bias")}
    torch.save({"state_dict": {f"backbone.{name}": value for name, value in (file | norms).items()}},
               tmp_path / "seg.pth")
    found = from_file(tmp_path / "seg.pth", SWIN, norm_maps=True)
    same(as_timm(state, tmp_path, SWIN), found)
    assert found.norms is not None
    assert torch.equal(found.norms.state_dict()["2.weight"], norms["norm2.weight"])


def test_resnet_v1c_of_mmsegmentation(tmp_path: Path) -> None:
    state = pretrained("resnet50c")
    file = {}
    for name, value in state.items():
        if not name.startswith("fc."):
            name = re.sub(r"^conv1\.(\d)", r"stem.\1", name)
            file["backbone." + re.sub(r"^bn1\.", "stem.7.", name)] = value
    torch.save({"state_dict": file, "meta": {}}, tmp_path / "upernet_r50.pth")
    found = from_file(tmp_path / "upernet_r50.pth", "resnet50c")
    same(as_timm(state, tmp_path, "resnet50c"), found)
    assert "ResNetV1c" in found.loaded


def jax(state: dict[str, Tensor], heads: int, names: tuple[str, str, str]) -> dict[str, np.ndarray]:
    """The arrays of an npz: kernels (in, out), heads as an axis."""
    second, attention, mlp = names
    file: dict[str, Tensor] = {
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0), "cls": state["cls_token"],
        "embedding/bias": state["patch_embed.proj.bias"], "head/kernel": torch.zeros(3, 3),
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"], "Transformer/encoder_norm/bias": state["norm.bias"]}
    width = state["norm.weight"].shape[0]
    for n in range(BLOCKS):
        own, there = f"blocks.{n}.", f"Transformer/encoderblock_{n}/"
        for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", second)):
            file[f"{there}{theirs}/scale"] = state[f"{own}{ours}.weight"]
            file[f"{there}{theirs}/bias"] = state[f"{own}{ours}.bias"]
        for number, part in enumerate(("query", "key", "value")):
            rows = slice(number * width, (number + 1) * width)
            file[f"{there}{attention}/{part}/kernel"] = state[f"{own}attn.qkv.weight"][rows].t().reshape(
                width, heads, -1)
            file[f"{there}{attention}/{part}/bias"] = state[f"{own}attn.qkv.bias"][rows].reshape(heads, -1)
        file[f"{there}{attention}/out/kernel"] = state[f"{own}attn.proj.weight"].t().reshape(heads, -1, width)
        file[f"{there}{attention}/out/bias"] = state[f"{own}attn.proj.bias"]
        for number in (0, 1):
            file[f"{there}{mlp}/Dense_{number}/kernel"] = state[f"{own}mlp.fc{number + 1}.weight"].t()
            file[f"{there}{mlp}/Dense_{number}/bias"] = state[f"{own}mlp.fc{number + 1}.bias"]
    return {name: value.numpy() for name, value in file.items()}


@pytest.mark.parametrize(("prefix", "names"), [
    ("", ("LayerNorm_2", "MultiHeadDotProductAttention_1", "MlpBlock_3")),
    ("opt/target/", ("LayerNorm_1", "MultiHeadDotProductAttention_0", "MlpBlock_0"))])
def test_the_original_vision_transformer(prefix: str, names: tuple[str, str, str], tmp_path: Path) -> None:
    state = pretrained(VIT)
    arrays = jax(state, HEADS, names)
    np.savez(tmp_path / "augreg.npz", **{prefix + name: value for name, value in arrays.items()})
    found = from_file(tmp_path / "augreg.npz", VIT)
    same(as_timm(state, tmp_path, VIT), found)
    assert "JAX" in found.loaded


def test_blocks_stacked_along_an_axis(tmp_path: Path) -> None:
    state = pretrained(VIT)
    arrays = jax(state, HEADS, ("LayerNorm_1", "MultiHeadDotProductAttention_0", "MlpBlock_0"))
    together: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        if found := re.fullmatch(r"(.*encoderblock)_(\d+)(/.*)", name):
            together.setdefault(found[1] + found[3], np.stack([
                arrays[f"{found[1]}_{n}{found[3]}"] for n in range(BLOCKS)]))
        else:
            together[name.replace("Transformer/posembed_input/", "")] = value
    np.savez(tmp_path / "big_vision.npz", **{f"params/{name}": value for name, value in together.items()})
    same(as_timm(state, tmp_path, VIT), from_file(tmp_path / "big_vision.npz", VIT))


def test_masked_autoencoder(tmp_path: Path) -> None:
    """Pretraining files have a decoder beside the encoder, and no classifier."""
    state = pretrained(VIT)
    file = {name: value for name, value in state.items() if not name.startswith("head.")}
    extra = {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, WIDTH),
             "decoder_blocks.0.norm1.weight": torch.zeros(8), "decoder_pos_embed": torch.zeros(1, 197, 8)}
    torch.save({"model": file | extra}, tmp_path / "mae.pth")
    same(as_timm(state, tmp_path, VIT), from_file(tmp_path / "mae.pth", VIT))


def test_dinov2_in_chunks(tmp_path: Path) -> None:
    model = "vit_small_patch14_dinov2"
    state = pretrained(model)
    file = {re.sub(r"^blocks\.(\d+)\.", lambda found: f"blocks.{int(found[1]) // 3}.{found[1]}.", name): value
            for name, value in state.items()}
    torch.save(file | {"mask_token": torch.zeros(1, WIDTH)}, tmp_path / "dinov2.pth")
    options = {"image_size": (64, 64)}
    same(as_timm(state, tmp_path, model, **options), from_file(tmp_path / "dinov2.pth", model, **options))


def test_stages_of_a_convolutional_network_are_no_chunks() -> None:
    state = {"blocks.0.0.conv_dw.weight": torch.zeros(2), "blocks.1.0.conv_pw.weight": torch.zeros(2)}
    assert in_timms_names(state) == (state, None, "")


def test_dinov2_with_registers(tmp_path: Path) -> None:
    """The class token has a position of its own there; timm's class does not, so it is added."""
    model = "vit_small_patch14_reg4_dinov2"
    state = pretrained(model)
    file = dict(state)
    position = torch.rand(1, 1, WIDTH)
    file["register_tokens"] = file.pop("reg_token")
    file["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    file["cls_token"] = state["cls_token"] - position
    torch.save(file | {"mask_token": torch.zeros(1, WIDTH)}, tmp_path / "dinov2.pth")
    one, other = (from_file(path, model, image_size=(64, 64)) for path in (tmp_path / "dinov2.pth",) * 2)
    expected = as_timm(state, tmp_path, model, image_size=(64, 64))
    found = one.state_dict()
    for name, value in expected.state_dict().items():
        if name.startswith("pyramid"):
            continue
        torch.testing.assert_close(found[name], value)
    same(one, other)


def test_dinov3(tmp_path: Path) -> None:
    model = "vit_small_patch16_dinov3"
    state = pretrained(model)
    names = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    file = {}
    for name, value in state.items():
        for ours, theirs in names.items():
            name = re.sub(rf"\b{ours}\b", theirs, name)
        file[name] = value
    for n in range(BLOCKS):
        file |= {f"blocks.{n}.attn.qkv.bias": torch.zeros(3 * WIDTH),
                 f"blocks.{n}.attn.qkv.bias_mask": torch.ones(3 * WIDTH)}
    file |= {"rope_embed.periods": torch.ones(16), "mask_token": torch.zeros(1, WIDTH)}
    torch.save(file, tmp_path / "dinov3.pth")
    same(as_timm(state, tmp_path, model), from_file(tmp_path / "dinov3.pth", model))


@pytest.mark.parametrize("norms", [True, False])
def test_segnet_begins_as_torchvisions_vgg(norms: bool, tmp_path: Path) -> None:
    from torchvision.models import vgg16, vgg16_bn

    with shapes_only():
        whole = (vgg16_bn if norms else vgg16)()
    torch.manual_seed(0)
    features = whole.features.to_empty(device="cpu").eval()
    for name, value in features.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) * (0.02 if value.ndim == 4 else 1.0) + (0.5 if "var" in name else 0.0))
    file = {f"features.{name}": value for name, value in features.state_dict().items()}
    torch.save(file | {"classifier.6.weight": torch.zeros(3, 3)}, tmp_path / "vgg.pth")
    backbone = SegNet(SegNet.Config(weights=tmp_path / "vgg.pth")).eval()
    assert backbone.mean == Timm.mean and "VGG-16" in backbone.loaded
    image = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(backbone.run(image)[4].map, features(image), rtol=1e-4, atol=1e-4)


def test_a_segnet_of_other_widths_is_no_vgg(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3), "features.0.bias": torch.zeros(64)}, tmp_path / "x.pth")
    with pytest.raises(InputError, match="the 13 of torchvision"):
        SegNet(SegNet.Config(weights=tmp_path / "x.pth"))
