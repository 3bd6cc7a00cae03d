"""DeMT's repository: deformable mixers and task queries on Swin or HRNet.

Source: Xu, Yang, Zhang, AAAI 2023, arXiv 2301.03461, https://github.com/yangyangxu0/DeMT
"""

from __future__ import annotations

from dataclasses import replace

from polyptych.decoders.demt import DeMT
from polyptych.encoders.shared import Shared
from polyptych.published._backbones import HRNET, SWIN_MMSEG, hrnet, swin_mmseg
from polyptych.published._base import Form, Parts, Repository, Row, Seen, one_saliency_logit
from polyptych.renaming import Rename, under

HEAD = (
    Rename("linear1.{n:0|1}.*", "embed.linear.{n}.*"),
    # A mixer of every task: a 1x1 convolution and its norm, then the deformable one with its offsets and norm.
    Rename("defor_mixers.{i}.blocks.{d}.0.*", "mixers.{tasks[i]}.{d}.mix.*"),
    Rename("defor_mixers.{i}.blocks.{d}.2.*", "mixers.{tasks[i]}.{d}.norm.*"),
    Rename("defor_mixers.{i}.blocks.{d}.3.fn.0.get_offset.*", "mixers.{tasks[i]}.{d}.offsets.*"),
    Rename("defor_mixers.{i}.blocks.{d}.3.fn.0.{end:weight|bias}", "mixers.{tasks[i]}.{d}.deform.{end}"),
    Rename("defor_mixers.{i}.blocks.{d}.3.fn.2.*", "mixers.{tasks[i]}.{d}.deformed_norm.*"),
    Rename("task_fusion.*", "interact.*"),
    Rename("smlp.{n:0|1}.*", "interacted.{n}.*"),
    Rename("task_querys.{i}.*", "queries.{tasks[i]}.*"),
    Rename("smlp2.{i}.{n:0|1}.*", "queried.{tasks[i]}.{n}.*"),
    Rename("bottleneck.{task}.conv.weight", "heads.{task}.0.weight"),
    Rename("bottleneck.{task}.bn.*", "heads.{task}.1.*"),
    Rename("final_logits.{task}.*", "heads.{task}.3.*"),
)


def demt(seen: Seen) -> Parts:
    swin = seen.has("backbone.patch_embed.projection.weight")
    backbone = swin_mmseg(seen, "backbone.") if swin else replace(hrnet(seen, "backbone."), pad=False)
    depth = seen.count("head.defor_mixers.0.blocks.{d}.0.weight", "d")
    width = seen.shape("head.linear1.0.weight")[0]
    return Parts(backbone, Shared.Config(),
                 DeMT.Config(attention="pixel", offsets="published", depth=depth, width=width))


class DeMTRepository(Repository):
    """Images of NYUD are used at 425x560 without padding, those of PASCAL-Context padded to 512x512. Results equal
    those of the published program for one image per device, as it was tested: its attention mixes the images of a
    batch."""

    page = "https://github.com/yangyangxu0/DeMT"
    license = "no license file"
    files = ("Google Drive links in the README: Swin-T, Swin-T with two mixers (xd=2) and Swin-S on NYUD, checkpoints "
             "of Lightning 1.1.8 with the network under state_dict; the links of HRNet, B and L are empty")
    order = ("semseg", "depth", "human_parts", "sal", "normals", "edge")
    prefix = ""
    recipes = ("nyud_demt", "pascal_demt")
    left_out = ("backbone.stages.{s}.blocks.{b}.attn.w_msa.relative_position_index", "criterion.*",
                "head.defor_mixers.{i}.blocks.{d}.3.fn.0.offset")
    forms = (
        Form("DeMT", signs=("head.defor_mixers.0.blocks.0.0.weight",), parts=demt, finish=one_saliency_logit(".3"),
             outputs=("head.final_logits.{task}.weight",),
             rules=(*under("backbone.", "encoder.backbone.", (*SWIN_MMSEG, *HRNET)),
                    *under("head.", "decoder.", HEAD))),
    )
    rows = (
        Row("DeMT, Swin-T", "mIoU 46.36, RMSE 0.5871, normals 20.60, odsF 76.9", "ATRC-N", "Google Drive"),
        Row("DeMT, Swin-T, xd=2", "mIoU 47.45, RMSE 0.5563, normals 19.90, odsF 77.0", "ATRC-N", "Google Drive"),
        Row("DeMT, Swin-S", "mIoU 51.50, RMSE 0.5474, normals 20.02, odsF 78.1", "ATRC-N", "Google Drive"),
    )
