"""Converts backbone weights from the layouts of their authors, or of others who trained them, to timm's names and
shapes.

timm converts many layouts itself (Microsoft's Swin, MAE, DINOv2, DINOv3); this module has the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polyptych.renaming import Rename, renamed


def block_order(merging: Tensor) -> Tensor:
    """Reorder the 4C inputs of patch merging, which reads 2x2 patches. mmsegmentation (which unfolds) orders them by
    channel, then by position, row by row; Microsoft and timm order them by position, column by column, then by channel.
    Applies to the columns of the linear layer and to the norm before it."""
    channels = merging.shape[-1] // 4
    places = merging.unflatten(-1, (channels, 2, 2))  # (..., channel, row, column)
    return places.movedim(-3, -1).transpose(-3, -2).flatten(-3)  # (..., column, row, channel)


SWIN_MMSEG = (
    Rename("patch_embed.projection.*", "patch_embed.proj.*"),
    Rename("patch_embed.norm.*", "patch_embed.norm.*"),
    Rename("stages.{s}.blocks.{b}.attn.w_msa.*", "layers.{s}.blocks.{b}.attn.*"),
    Rename("stages.{s}.blocks.{b}.ffn.layers.0.0.*", "layers.{s}.blocks.{b}.mlp.fc1.*"),
    Rename("stages.{s}.blocks.{b}.ffn.layers.1.*", "layers.{s}.blocks.{b}.mlp.fc2.*"),
    Rename("stages.{s}.blocks.{b}.norm{n}.*", "layers.{s}.blocks.{b}.norm{n}.*"),
    # Patch merging ends a stage in mmsegmentation, and begins the next one in timm.
    Rename("stages.{s}.downsample.*", "layers.{s + 1}.downsample.*", change=block_order),
    Rename("norm{s:0|1|2|3}.*", "norm{s}.*"),
)
RESNET_V1C = (  # three 3x3 convolutions in place of the 7x7 one
    Rename("stem.{n:0|1|3|4|6}.*", "conv1.{n}.*"),
    Rename("stem.7.*", "bn1.*"),
    Rename("layer{n}.*", "layer{n}.*"),
)


def columns(kernel: Tensor) -> Tensor:
    """JAX multiplies from the left, (in, out); heads are axes of their own, (in, heads, width) or (heads, width,
    out)."""
    return kernel.t() if kernel.ndim == 2 else kernel


def to_heads(kernel: Tensor) -> Tensor:
    """(in, heads, width) as rows of (heads * width, in); a bias (heads, width) flattened."""
    return kernel.flatten(1).t() if kernel.ndim == 3 else kernel.flatten()


def from_heads(kernel: Tensor) -> Tensor:
    """(heads, width, out) as (out, heads * width)."""
    return kernel.flatten(0, 1).t()


def as_filters(kernel: Tensor) -> Tensor:
    """(height, width, in, out) as (out, in, height, width)."""
    return kernel.permute(3, 2, 0, 1)


_NORM = {"scale": "weight", "bias": "bias"}
JAX_VIT = (
    Rename("embedding.kernel", "patch_embed.proj.weight", change=as_filters),
    Rename("embedding.bias", "patch_embed.proj.bias"),
    Rename("cls", "cls_token"),
    Rename("Transformer.posembed_input.pos_embedding", "pos_embed"),
    Rename("pos_embedding", "pos_embed"),
    Rename("Transformer.encoder_norm.scale", "norm.weight"),
    Rename("Transformer.encoder_norm.bias", "norm.bias"),
    *(Rename(f"Transformer.encoderblock_{{n}}.LayerNorm_{{i:{theirs}}}.{end}", f"blocks.{{n}}.norm{ours}.{name}")
      for theirs, ours in ((0, 1), ("1|2", 2)) for end, name in _NORM.items()),
    # In the order of the rows: queries, keys, values.
    *(Rename(f"Transformer.encoderblock_{{n}}.MultiHeadDotProductAttention_{{i}}.{part}.{end}",
             f"blocks.{{n}}.attn.qkv.{name}", change=to_heads, gather=torch.cat)
      for part in ("query", "key", "value") for end, name in (("kernel", "weight"), ("bias", "bias"))),
    Rename("Transformer.encoderblock_{n}.MultiHeadDotProductAttention_{i}.out.kernel", "blocks.{n}.attn.proj.weight",
           change=from_heads),
    Rename("Transformer.encoderblock_{n}.MultiHeadDotProductAttention_{i}.out.bias", "blocks.{n}.attn.proj.bias"),
    Rename("Transformer.encoderblock_{n}.MlpBlock_{i}.Dense_{m}.kernel", "blocks.{n}.mlp.fc{m + 1}.weight",
           change=columns),
    Rename("Transformer.encoderblock_{n}.MlpBlock_{i}.Dense_{m}.bias", "blocks.{n}.mlp.fc{m + 1}.bias"),
)


def _unstacked(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """big_vision may keep all blocks along a first axis, under ``encoderblock``."""
    single: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if ".encoderblock." in key:
            single |= {key.replace(".encoderblock.", f".encoderblock_{n}."): part for n, part in enumerate(tensor)}
        else:
            single[key] = tensor
    return single


@dataclass(frozen=True)
class OwnLayout:
    """One layout of weights.

    Attributes:
        name: name for the message on what was recognized.
        sign: the end of a key that only this layout has.
        rules: renames keys to timm's names; other keys keep their names.
        before: applied to all tensors first.
        for_timm: whether timm's own conversion runs afterwards, which resizes position tables and patch embeddings.
    """

    name: str
    sign: str
    rules: tuple[Rename, ...]
    before: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
    for_timm: bool = False


LAYOUTS = (
    OwnLayout("mmsegmentation's names of Swin", "patch_embed.projection.weight", SWIN_MMSEG),
    OwnLayout("mmsegmentation's names of ResNetV1c", "stem.7.running_var", RESNET_V1C),
    OwnLayout("JAX's names of a vision transformer", "embedding.kernel", JAX_VIT, before=_unstacked,
              for_timm=True),
)
CHUNKS = OwnLayout("DINOv2's chunks of blocks", "", (), for_timm=True)
_CHUNK = re.compile(r"^(.*\bblocks)\.\d+\.(\d+\..*)$")


def in_timms_names(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], OwnLayout | None, str]:
    """Tensors under timm's names, their original layout if it is one of these, and the prefix of their names."""
    dotted = {key.replace("/", "."): tensor for key, tensor in state.items()}
    for layout in LAYOUTS:
        key = next((key for key in dotted if key == layout.sign or key.endswith(f".{layout.sign}")), None)
        if key is None:
            continue
        prefix = key.removesuffix(layout.sign)
        inside = {key.removeprefix(prefix): tensor for key, tensor in dotted.items() if key.startswith(prefix)}
        if layout.before is not None:
            inside = layout.before(inside)
        found, left = renamed(inside, layout.rules, {}, {})
        return found | {key: inside[key] for key in left if key not in found}, layout, prefix
    if any(key.endswith("0.0.attn.qkv.weight") and _CHUNK.match(key) for key in state):
        # DINOv2's training code stores blocks in chunks: blocks.CHUNK.NUMBER. (EfficientNet names stages the same way.)
        return {(_CHUNK.sub(r"\1.\2", key)): tensor for key, tensor in state.items()}, CHUNKS, ""
    return state, None, ""
