"""Networks of the published layouts, with the fixtures' weights put into them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path

import pytest
import torch

from polyptych.networks import Network

DATA = Path(os.environ.get("POLYPTYCH_TEST_DATA", Path(__file__).parents[2].parent / "shared/data")) / "published"
MERGING = re.compile(r"backbone\.layers\.(\d+)\.downsample\.(.*)")


def fixture(name):
    """The record, and the module that fills its layout."""
    if not (DATA / f"{name}.json").is_file():
        pytest.skip(f"no {DATA / name}.json")
    spec = importlib.util.spec_from_file_location("fill", DATA / "fill.py")
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    return json.loads((DATA / f"{name}.json").read_text()), fill


def swin_key(key: str, encoder: str = "encoder.backbone.stages") -> str:
    """Microsoft's names to ours: a stage ends with the merging of patches there, and begins with it in timm."""
    if match := MERGING.fullmatch(key):
        return f"{encoder}.{int(match[1]) + 2}.stage.downsample.{match[2]}"
    key = re.sub(r"^backbone\.patch_embed\.", f"{encoder}.0.stage.", key)
    return re.sub(r"^backbone\.layers\.(\d+)\.", lambda m: f"{encoder}.{int(m[1]) + 1}.stage.", key)


def mtlora_key(key: str) -> str:
    key = swin_key(key)
    key = re.sub(r"^downsampler\.(\w+)\.downsample_(\d)\.", r"encoder.reduce.\1.\2.", key)
    key = re.sub(r"^decoders\.decoders\.(\w+)\.last_layer\.([01])\.", r"decoder.heads.\1.fuse.\2.", key)
    return re.sub(r"^decoders\.decoders\.(\w+)\.last_layer\.3\.", r"decoder.heads.\1.predict.", key)


def task_conditional_key(key: str) -> str:
    """Of PGT and TIT; their blocks' attention and MLP lie within what adapts them here."""
    key = swin_key(key)
    key = re.sub(r"^decoders\.all\.layers\.(\d)\.blocks\.", r"decoder.layers.\1.", key)
    key = re.sub(r"^decoders\.all\.transform\.", "decoder.gathering.", key)
    key = re.sub(r"^decoders\.all\.task_emb_gens\.(\w+)\.mlp\.", r"decoder.generators.\1.", key)
    key = re.sub(r"^decoders\.all\.all_task_inds\.", "decoder.vectors.", key)
    key = re.sub(r"^decoders\.all\.(\w+_gate)\.", r"decoder.\1.", key)
    key = re.sub(r"^backbone\.all_prompt_embeddings\.(\w+)\.(\d)$", r"encoder.prompts.\2.of.\1", key)
    key = re.sub(r"^decoders\.all\.all_prompt_embeddings\.(\w+)\.(\d)$", r"decoder.prompts.\2.of.\1", key)
    for number, name in enumerate(("upsample1", "upsample2", "last_conv")):
        key = re.sub(rf"^heads\.(\w+)\.{name}\.", rf"decoder.heads.\1.{number}.", key)
    key = re.sub(r"(?<=\.)adapters_att\.", "attn.adapter.", key)
    return re.sub(r"(?<=\.)adapters_mlp\.", "mlp.adapter.", key)


def pgt_key(key: str) -> str:
    return re.sub(r"\.attn\.(?=qkv|proj|rel)", ".attn.inner.", task_conditional_key(key))


def tit_key(key: str) -> str:
    return re.sub(r"\.mlp\.(?=fc)", ".mlp.inner.", pgt_key(key))


def load(network: Network, record, fill, rename) -> Network:
    state = {rename(key): torch.from_numpy(value) for key, value in fill.fill(
        {key: how for key, how in record["layout"].items() if key not in record["derived"]}, record["seed"]).items()}
    network = network.double()
    missing, unknown = network.load_state_dict(state, strict=False)
    assert not unknown and all(name in ("mean", "std") for name in missing), (missing[:5], unknown[:5])
    for name in ("mean", "std"):  # the buffers come from float32
        exact = torch.tensor(record["input"]["normalization"][name], dtype=torch.float64)
        getattr(network, name).copy_(exact.view(3, 1, 1))
    return network.eval()


@torch.no_grad()
def check(network: Network, record, fill, tolerance=1e-9):
    image = torch.from_numpy(fill.image_of(record["input"]["shape"], record["seed"]))
    output = network(image)
    for name, expected in record["expect"].items():
        found = output.final[name].contiguous().numpy()
        assert list(found.shape) == expected["shape"]
        sample = found.reshape(-1)[fill.positions(name, found.size, record["seed"])]
        scale = max(abs(v) for v in expected["sample"])
        assert max(abs(a - b) for a, b in zip(sample, expected["sample"], strict=True)) <= tolerance * scale, name
        assert abs(found.mean() - expected["mean"]) <= tolerance * scale
