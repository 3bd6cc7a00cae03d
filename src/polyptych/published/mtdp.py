"""MTDP_Lib, the repository of PGT and TIT: networks that run once per task.

Source: Lu et al., Prompt Guided Transformer, IEEE TMM 2024, arXiv 2307.15362; Task Indicating Transformer, ICASSP 2024,
arXiv 2403.00327; https://github.com/innovator-zero/MTDP_Lib
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from polyptych.decoders.pgt import PGTDecoder
from polyptych.decoders.tit import TITDecoder
from polyptych.encoders.pgt import PGT
from polyptych.encoders.tit import TIT
from polyptych.errors import InputError
from polyptych.published._base import Form, Parts, Repository, Seen, Size, one_saliency_logit
from polyptych.published._swin import RECOMPUTED, SWIN, swin, windows
from polyptych.renaming import Rename, under

ATTENTION = (
    Rename("layers.{s}.blocks.{b}.attn.*", "stages.{s + 1}.stage.blocks.{b}.attn.inner.*"),
    *SWIN,
)
ADAPTED = (
    *(Rename(f"layers.{{s}}.blocks.{{b}}.adapters_{theirs}.down_task.{{task}}.*",
             f"stages.{{s + 1}}.stage.blocks.{{b}}.{ours}.adapter.down_task.{{task}}.*")
      for theirs, ours in (("att", "attn"), ("mlp", "mlp"))),
    Rename("layers.{s}.blocks.{b}.adapters_att.*", "stages.{s + 1}.stage.blocks.{b}.attn.adapter.*"),
    Rename("layers.{s}.blocks.{b}.adapters_mlp.*", "stages.{s + 1}.stage.blocks.{b}.mlp.adapter.*"),
    Rename("layers.{s}.blocks.{b}.mlp.*", "stages.{s + 1}.stage.blocks.{b}.mlp.inner.*"),
    *ATTENTION,
)
COMMON = (
    Rename("decoders.all.transform.*", "decoder.gathering.*"),
    Rename("heads.{task}.upsample1.*", "decoder.heads.{task}.0.*"),
    Rename("heads.{task}.upsample2.*", "decoder.heads.{task}.1.*"),
    Rename("heads.{task}.last_conv.*", "decoder.heads.{task}.last.*"),
)


def _finish_heads(tensors: dict[str, Tensor], seen: Seen) -> None:
    """The last layer of a head is its third, or its only one; saliency has one channel here."""
    number = 2 if _head(seen) == "transpose" else 0
    for name in [name for name in tensors if ".last." in name]:
        tensors[name.replace(".last.", f".{number}.")] = tensors.pop(name)
    one_saliency_logit(f".{number}")(tensors, seen)


def _head(seen: Seen) -> Literal["transpose", "plain"]:
    return "transpose" if seen.has("heads.{task}.upsample1.weight") else "plain"


def _size(seen: Seen) -> Size:
    """The size of the training images: the user's, or that of a published configuration with as many windows."""
    if seen.size is not None:
        return seen.size
    side = 4 * windows(seen)
    number = seen.shape("backbone.layers.0.blocks.1.attn_mask")[0]
    for height, width in ((448, 576), (512, 512)):
        if -(-height // side) * -(-width // side) == number:
            return height, width
    raise InputError(seen.where, f"{number} windows, but not their height and width",
                     "the size of the training images", "add --size HEIGHT WIDTH")


def pgt(seen: Seen) -> Parts:
    size, task = _size(seen), next(iter(seen.tasks))
    layers = seen.count("decoders.all.layers.{l}.blocks.0.norm1.weight", "l")
    table = "decoders.all.layers.{}.blocks.0.attn.relative_position_bias_table"
    decoder = PGTDecoder.Config(
        size=size, width=seen.shape("decoders.all.transform.linears.0.weight")[0], head=_head(seen),
        depths=tuple(seen.count(f"decoders.all.layers.{n}.blocks.{{b}}.norm1.weight", "b") for n in range(layers)),
        attention_heads=tuple(seen.shape(table.format(n))[1] for n in range(layers)),
        window=(round(seen.shape(table.format(0))[0] ** 0.5) + 1) // 2,
        prompts=seen.shape(f"decoders.all.all_prompt_embeddings.{task}.0")[1])
    prompts = seen.shape(f"backbone.all_prompt_embeddings.{task}.0")[1]
    return Parts(swin(seen, size), PGT.Config(prompts=prompts), decoder, size)


def tit(seen: Seen) -> Parts:
    size, task = _size(seen), next(iter(seen.tasks))
    cells, vector = seen.shape(f"decoders.all.task_emb_gens.{task}.mlp.weight")
    positions = -(-size[0] // 32) * -(-size[1] // 32)
    if cells % positions:
        raise InputError("--size", f"{size[0]} {size[1]}, which has {positions} positions at stride 32",
                         f"a size whose positions divide {cells}",
                         "pass the size that the network was trained with")
    decoder = TITDecoder.Config(
        size=size, width=seen.shape("decoders.all.transform.linears.0.weight")[0], head=_head(seen),
        embedding=cells // positions, vector=vector)
    width = seen.shape("backbone.layers.0.blocks.0.norm1.weight")[0]
    middle, inner = seen.shape(f"backbone.layers.0.blocks.0.adapters_att.down_task.{task}.weight")
    return Parts(swin(seen, size), TIT.Config(down=width // middle, reduction=middle // inner), decoder, size)


class MTDPRepository(Repository):
    """Images are padded to 448x576 (NYUD) or 512x512 (PASCAL-Context); the windows and TIT's decoder belong to that
    size. There is no recipe for the authors' training here: a run that starts from an import trains like InvPT."""

    page = "https://github.com/innovator-zero/MTDP_Lib"
    license = "MIT"
    files = "Google Drive links in the README; checkpoint.pth with the network under model"
    order = ("semseg", "human_parts", "sal", "normals", "edge", "depth")
    prefix = ""
    recipes = ("nyud_invpt", "pascal_invpt")
    left_out = (*RECOMPUTED, "decoders.all.layers.{l}.blocks.{b}.attn_mask",
                "decoders.all.layers.{l}.blocks.{b}.attn.relative_position_index")
    forms = (
        Form("PGT", signs=("backbone.all_prompt_embeddings.{task}.0", "decoders.all.all_prompt_embeddings.{task}.0"),
             parts=pgt, outputs=("heads.{task}.last_conv.weight",), finish=_finish_heads,
             rules=(Rename("backbone.all_prompt_embeddings.{task}.{s}", "encoder.prompts.{s}.of.{task}"),
                    Rename("decoders.all.all_prompt_embeddings.{task}.{l}", "decoder.prompts.{l}.of.{task}"),
                    Rename("decoders.all.layers.{l}.blocks.{b}.attn.*", "decoder.layers.{l}.{b}.attn.inner.*"),
                    Rename("decoders.all.layers.{l}.blocks.{b}.*", "decoder.layers.{l}.{b}.*"),
                    *under("backbone.", "encoder.backbone.", ATTENTION), *COMMON)),
        Form("TIT", signs=("backbone.layers.0.blocks.0.adapters_att.down_task.{task}.weight",
                           "decoders.all.task_emb_gens.{task}.mlp.weight"),
             parts=tit, outputs=("heads.{task}.last_conv.weight",), finish=_finish_heads,
             rules=(Rename("decoders.all.task_emb_gens.{task}.mlp.*", "decoder.generators.{task}.*"),
                    Rename("decoders.all.all_task_inds.{task}", "decoder.vectors.{task}"),
                    Rename("decoders.all.{g:reset|update|out}_gate.*", "decoder.{g}_gate.*"),
                    *under("backbone.", "encoder.backbone.", ADAPTED), *COMMON)),
    )
