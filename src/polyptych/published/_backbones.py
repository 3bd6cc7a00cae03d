"""Backbones that several repositories share: their tables of names, and which timm network a file holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import timm

from polyptych.backbones._own_layouts import block_order
from polyptych.backbones.timm import Timm
from polyptych.devices import shapes_only
from polyptych.errors import InputError
from polyptych.published._base import Seen, Size
from polyptych.renaming import Rename

# -- HRNet -----------------------------------------------------------------------------------------------------------

HRNET = (
    Rename("conv1.*", "stages.0.0.*"),
    Rename("bn1.*", "stages.0.1.*"),
    Rename("conv2.*", "stages.0.3.*"),
    Rename("bn2.*", "stages.0.4.*"),
    Rename("layer1.*", "stages.1.*"),
    Rename("transition{n}.*", "stages.{n + 1}.transition.*"),
    Rename("stage{n}.*", "stages.{n}.branches.*"),
)

_HRNETS = ("hrnet_w18_small_v2", "hrnet_w18_small", "hrnet_w18", "hrnet_w30", "hrnet_w32", "hrnet_w40", "hrnet_w44",
           "hrnet_w48", "hrnet_w64")


def hrnet(seen: Seen, prefix: str) -> Timm.Config:
    """HRNet with bilinear fusion and its authors' momentum, the form that all of these repositories use."""
    shapes = {key: shape for key, shape in seen.part(prefix).items() if _HRNET_PARTS.match(key)}
    return Timm.Config(model=_same(seen, _HRNETS, shapes, "an HRNet"), batch_norm_momentum=0.01)


_HRNET_PARTS = re.compile(r"(conv[12]|bn[12]|layer1|transition[123]|stage[234])\.")

# -- ResNet ----------------------------------------------------------------------------------------------------------

RESNET = (
    Rename("conv1.*", "stages.0.0.*"),
    Rename("bn1.*", "stages.0.1.*"),
    Rename("layer{n}.*", "stages.{n}.*"),
)

_RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def dilated_resnet(seen: Seen, prefix: str) -> Timm.Config:
    """A ResNet of torchvision, dilated to stride 8."""
    shapes = {key: shape for key, shape in seen.part(prefix).items()
              if key.startswith(("conv1.", "bn1.", "layer"))}
    return Timm.Config(model=_same(seen, _RESNETS, shapes, "a ResNet"), output_stride=8)


def _same(seen: Seen, candidates: Iterable[str], shapes: Mapping[str, tuple[int, ...]], kind: str) -> str:
    """The timm network with exactly these tensors."""
    shapes = {key: shape for key, shape in shapes.items() if not key.endswith("num_batches_tracked")}
    for name in candidates:
        options: dict[str, Any] = {}
        if name.startswith("hrnet_"):
            options = {"feature_location": "", "out_indices": (1, 2, 3, 4)}
        with shapes_only():
            network = timm.create_model(name, features_only=True, **options)
        if shapes == {key: tuple(value.shape) for key, value in network.state_dict().items()
                      if not key.endswith("num_batches_tracked")}:
            return name
    raise InputError(seen.where, f"{kind} of an unknown form ({len(shapes)} tensors)",
                     f"one of {', '.join(candidates)}", "use a file with one of these; others have no counterpart here")


# -- Swin, under mmsegmentation's names ------------------------------------------------------------------------------


SWIN_MMSEG = (
    Rename("patch_embed.projection.*", "stages.0.stage.proj.*"),
    Rename("patch_embed.norm.*", "stages.0.stage.norm.*"),
    Rename("stages.{s}.blocks.{b}.attn.w_msa.*", "stages.{s + 1}.stage.blocks.{b}.attn.*"),
    Rename("stages.{s}.blocks.{b}.ffn.layers.0.0.*", "stages.{s + 1}.stage.blocks.{b}.mlp.fc1.*"),
    Rename("stages.{s}.blocks.{b}.ffn.layers.1.*", "stages.{s + 1}.stage.blocks.{b}.mlp.fc2.*"),
    Rename("stages.{s}.blocks.{b}.norm{n}.*", "stages.{s + 1}.stage.blocks.{b}.norm{n}.*"),
    # Merging ends a stage there and begins the next one in timm.
    Rename("stages.{s}.downsample.*", "stages.{s + 2}.stage.downsample.*", change=block_order),
    Rename("norm{s:0|1|2|3}.*", "norms.{s}.*"),
)

SWINS: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2), (3, 6, 12, 24)): "tiny", (96, (2, 2, 18, 2), (3, 6, 12, 24)): "small",
    (128, (2, 2, 18, 2), (4, 8, 16, 32)): "base", (192, (2, 2, 18, 2), (6, 12, 24, 48)): "large"}
_INPUTS = {7: 224, 12: 384}


def swin_mmseg(seen: Seen, prefix: str) -> Timm.Config:
    """A Swin for dense prediction: norms on its maps, windows that shift in every stage, no padding of the image."""
    width, _, patch, _ = seen.shape(f"{prefix}patch_embed.projection.weight")
    depths = tuple(seen.count(f"{prefix}stages.{s}.blocks.{{b}}.norm1.weight", "b") for s in range(4))
    tables = [seen.shape(f"{prefix}stages.{s}.blocks.0.attn.w_msa.relative_position_bias_table") for s in range(4)]
    window, heads = (round(tables[0][0]**0.5) + 1) // 2, tuple(columns for _, columns in tables)
    model, architecture = "swin_tiny_patch4_window7_224", (f"patch_size={patch}, embed_dim={width}, depths={depths}, "
                                                           f"num_heads={heads}, window_size={window}")
    if (name := SWINS.get((width, depths, heads))) and window in _INPUTS and patch == 4:
        model, architecture = f"swin_{name}_patch4_window{window}_{_INPUTS[window]}", ""
    return Timm.Config(model=model, architecture=architecture, norm_maps=bool(seen.part(f"{prefix}norm0.")), pad=False)


# -- plain vision transformers ---------------------------------------------------------------------------------------

VIT = (
    Rename("patch_embed.proj.*", "stages.0.model.patch_embed.proj.*"),
    Rename("pos_embed", "stages.0.model.pos_embed"),
    Rename("cls_token", "stages.0.model.cls_token"),
    Rename("blocks.{n}.*", "stages.{1 + n // quarter}.blocks.{n % quarter}.*"),
    Rename("norm.*", "stages.4.norm.*"),
)

_VITS = {(192, 12, 16): "vit_tiny_patch16_224", (384, 12, 16): "vit_small_patch16_224",
         (384, 12, 32): "vit_small_patch32_224", (768, 12, 16): "vit_base_patch16_384",
         (768, 12, 32): "vit_base_patch32_384", (768, 12, 8): "vit_base_patch8_224",
         (1024, 24, 16): "vit_large_patch16_384", (1024, 24, 32): "vit_large_patch32_384"}
_GRIDS = {1008: (28, 36), 1024: (32, 32)}
"""Positions of the published configurations: 448x576 and 512x512."""


def vit(seen: Seen, prefix: str) -> tuple[Timm.Config, Size, int]:
    """A plain vision transformer with maps after each quarter of its blocks, the size of its images, and the number of
    blocks in a quarter. Its table of positions is that of the file, never resampled."""
    width, _, patch, _ = seen.shape(f"{prefix}patch_embed.proj.weight")
    depth = seen.count(f"{prefix}blocks.{{n}}.norm1.weight", "n")
    model, architecture = _VITS.get((width, depth, patch)), ""
    if model is None or depth % 4:
        known = ", ".join(f"{w} channels in {d} blocks at patches of {p}" for w, d, p in _VITS)
        if depth % 4 or "num_heads" not in seen.assumed:
            raise InputError(seen.where, f"a vision transformer of {width} channels in {depth} blocks at patches of "
                             f"{patch}", f"one of {known}, or a number of blocks that 4 divides and the number "
                             "of heads", "add --assume num_heads=NUMBER, or use a file with one of these")
        heads = int(seen.assume("num_heads", None, "the number of its heads"))
        model, architecture = "vit_tiny_patch16_224", (f"patch_size={patch}, embed_dim={width}, depth={depth}, "
                                                       f"num_heads={heads}")
    size = seen.grid(seen.shape(f"{prefix}pos_embed")[1] - 1, patch, _GRIDS)
    backbone = Timm.Config(model=model, architecture=architecture, image_size=size, vit_pyramid="taps")
    return backbone, size, depth // 4
