"""MLoRE's repository: mixtures of low-rank experts on a vision transformer.

Source: Yang et al., CVPR 2024, arXiv 2403.17749, https://github.com/YuqiYang213/MLoRE
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from polyptych.decoders.mlore import MLoRE
from polyptych.encoders.shared import Shared
from polyptych.errors import InputError
from polyptych.published._backbones import VIT, vit
from polyptych.published._base import Form, Parts, Repository, Row, Seen, one_saliency_logit
from polyptych.renaming import Rename, joined, stacked, under


def side_by_side(pieces: list[Tensor]) -> Tensor:
    """The pieces joined along their columns: all of the first, then all of the next."""
    return torch.cat(pieces, dim=1)


def without_first(positions: Tensor) -> Tensor:
    """A table of positions without the row of a class token, which the authors' network does not have."""
    return positions[:, 1:]


ROUTER = (
    Rename("0.conv1.*", "enter.*"),
    Rename("0.ln.*", "norm.*"),
    Rename("0.conv3.*", "leave.*"),
    Rename("0.convsp.*", "weigh.*"),
    Rename("0.ln_sp.*", "norm_sums.*"),
    Rename("0.conv2.*", "leave_sums.*"),
    Rename("1.*", "decide.*"),
)
MIXTURE = (
    # The layers of all experts are one here.
    Rename("lora_list_1.{i}.W.*", "down.*", gather=joined),
    Rename("lora_list_1.{i}.M.weight", "up.weight", gather=side_by_side),
    Rename("lora_list_1.{i}.M.bias", "offset", gather=stacked),
    Rename("share_conv.*", "shared.*"),
    Rename("conv1.{task}.*", "enter.{task}.*"),
    Rename("conv2.{task}.W.*", "own.{task}.0.*"),
    Rename("conv2.{task}.M.*", "own.{task}.1.*"),
    Rename("conv3.{task}.*", "leave.{task}.*"),
    Rename("bn_all.{task}.*", "norm_experts.{task}.*"),
    Rename("bn.{task}.*", "norm.{task}.*"),
    *under("router_1.{task}.", "route.{task}.", ROUTER),
)
DECODER = (
    Rename("backbone.fea_fuse.{l}.*", "enter.{l}.*"),
    *under("backbone.MLoRE_{s}.{l}.", "mixtures.{l}.{s - 1}.", MIXTURE),
    Rename("backbone.task_mask.{task}.*", "mask.{task}.*"),
    Rename("heads.{task}.mt_proj.{n:0|1}.*", "heads.{task}.{n}.*"),
    Rename("heads.{task}.linear_pred.*", "heads.{task}.3.*"),
)
EXPERTS, ACTIVE = 15, 9  # of all published configurations
RENORMALIZED = {452: 0.0, 640: 0.0, 768: 1.0}
"""``pre_softmax`` of the published configurations, by final_embed_dim."""


def mlore(seen: Seen) -> Parts:
    backbone, size, quarter = vit(seen, "backbone.")
    options = ", ".join(filter(None, (backbone.architecture, "class_token=False, global_pool=''")))
    mixture, task = "backbone.MLoRE_1.0", next(iter(seen.tasks))
    width = seen.shape("backbone.fea_fuse.0.weight")[0]
    experts = seen.count(f"{mixture}.lora_list_1.{{i}}.W.weight", "i")
    active = seen.assume("topk", ACTIVE if experts == EXPERTS else None, "the number of experts that an image uses")
    first = seen.assume("pre_softmax", RENORMALIZED.get(width),
                        "whether experts are chosen before the softmax (1) or after it (0)")
    if active not in range(1, experts + 1):
        raise InputError("--assume topk", f"{active:g}", f"1 to {experts}, the experts of the file",
                         "take the number of the run that wrote the file")
    if first not in (0, 1):
        raise InputError("--assume pre_softmax", f"{first:g}", "0 or 1",
                         "1: experts are chosen before the softmax; 0: after it")
    decoder = MLoRE.Config(
        width=width, ranks=tuple(seen.shape(f"{mixture}.lora_list_1.{i}.W.weight")[0] for i in range(experts)),
        task_rank=seen.shape(f"{mixture}.conv2.{task}.W.weight")[0], active=int(active), renormalize=bool(first),
        size=size)
    return Parts(replace(backbone, architecture=options), Shared.Config(), decoder, size, {"quarter": quarter})


class MLoRERepository(Repository):
    """NYUD is padded to 448x576, PASCAL-Context to 512x512, with the mean color around the image; the transformer has
    no class token. Files of ViT-B hold modules that their program never calls, which are left out."""

    page = "https://github.com/YuqiYang213/MLoRE"
    license = "no license file; the headers of the files say CC BY-NC 4.0"
    files = ("Google Drive links in the README: ViT-L on NYUD and PASCAL-Context, ViT-B on PASCAL-Context; the network "
             "lies under model, keys are module.*")
    order = ("semseg", "depth", "human_parts", "sal", "normals", "edge")
    recipes = ("nyud_mlore", "pascal_mlore")
    left_out = ("backbone.q_fuse.*", "backbone.classify_route_{n}.*", "aux_heads.*")
    forms = (
        Form("MLoRE", signs=("backbone.MLoRE_1.0.share_conv.weight", "backbone.pos_embed"), parts=mlore,
             finish=one_saliency_logit(".3"), outputs=("heads.{task}.linear_pred.weight",),
             rules=(Rename("backbone.pos_embed", "encoder.backbone.stages.0.model.pos_embed", change=without_first),
                    *under("backbone.", "encoder.backbone.", VIT), *under("", "decoder.", DECODER))),
    )
    rows = (
        Row("MLoRE, ViT-L", "mIoU 55.96, RMSE 0.5076, normals 18.33, odsF 78.43", "INVPT-N", "Google Drive"),
        Row("MLoRE, ViT-L", "mIoU 81.41, parts 70.52, saliency maxF 84.90, normals 13.51, odsF 75.42", "INVPT-P",
            "Google Drive"),
        Row("MLoRE, ViT-B", "mIoU 79.26, parts 67.82, saliency maxF 85.31, normals 13.65, odsF 74.69", "INVPT-P",
            "Google Drive"),
    )
