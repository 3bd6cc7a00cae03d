"""Microsoft's Swin transformer in the form that MTLoRA, PGT, and TIT use: for images of one size.

Source: Liu et al., ICCV 2021, arXiv 2103.14030, https://github.com/microsoft/Swin-Transformer
"""

from __future__ import annotations

from polyptych.backbones.timm import Timm
from polyptych.errors import InputError
from polyptych.published._backbones import SWINS
from polyptych.published._base import Seen, Size
from polyptych.renaming import Rename

SWIN = (
    Rename("patch_embed.*", "stages.0.stage.*"),
    # There, patch merging ends a stage; in timm, it begins the next one.
    Rename("layers.{s}.downsample.*", "stages.{s + 2}.stage.downsample.*"),
    Rename("layers.{s}.blocks.{b}.*", "stages.{s + 1}.stage.blocks.{b}.*"),
)
RECOMPUTED = ("backbone.layers.{s}.blocks.{b}.attn_mask", "backbone.layers.{s}.blocks.{b}.attn.relative_position_index")


def depths(seen: Seen) -> tuple[int, ...]:
    """The number of blocks in each stage."""
    stages = seen.count("backbone.layers.{s}.blocks.0.norm1.weight", "s")
    return tuple(seen.count(f"backbone.layers.{s}.blocks.{{b}}.norm1.weight", "b") for s in range(stages))


def windows(seen: Seen) -> int:
    """The side of a window of the first stage, whose map is larger than one in all published configurations."""
    rows = seen.shape("backbone.layers.0.blocks.0.attn.relative_position_bias_table")[0]
    return (round(rows**0.5) + 1) // 2


def swin(seen: Seen, size: Size) -> Timm.Config:
    """The network of these shapes, for images of this size."""
    width, _, patch, _ = seen.shape("backbone.patch_embed.proj.weight")
    table = "backbone.layers.{}.blocks.0.attn.relative_position_bias_table"
    found = depths(seen)
    heads = tuple(seen.shape(table.format(s))[1] for s in range(len(found)))
    name = SWINS.get((width, found, heads))
    if name and patch == 4 and windows(seen) == 7:
        return Timm.Config(model=f"swin_{name}_patch4_window7_224", image_size=size, swin_windows="published")
    return Timm.Config(model="swin_tiny_patch4_window7_224", image_size=size, swin_windows="published",
                       architecture=f"patch_size={patch}, embed_dim={width}, depths={found}, num_heads={heads}, "
                                    f"window_size={windows(seen)}")


def square(seen: Seen) -> Size:
    """The size of square images that whole windows cover, from the number of windows.

    Raises:
        InputError: the windows do not form a square, and the user gives no size.
    """
    if seen.size is not None:
        return seen.size
    number = seen.shape("backbone.layers.0.blocks.1.attn_mask")[0]
    side = round(number**0.5)
    if side**2 != number:
        raise InputError(seen.where, f"{number} windows, which do not form a square", "the size of the training images",
                         "add --size HEIGHT WIDTH")
    side *= windows(seen) * seen.shape("backbone.patch_embed.proj.weight")[2]
    return side, side
