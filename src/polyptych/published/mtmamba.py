"""MTMamba's repository: MTMamba and MTMamba++ on Swin.

Source: Lin et al., ECCV 2024, arXiv 2407.02228; Lin et al., TPAMI 2025, arXiv 2408.15101;
Source: https://github.com/EnVision-Research/MTMamba
"""

from __future__ import annotations

from torch import Tensor

from polyptych.decoders.mtmamba import MTMamba
from polyptych.encoders.shared import Shared
from polyptych.errors import InputError
from polyptych.ops.selective_scan import PATHS
from polyptych.published._backbones import SWIN_MMSEG, swin_mmseg
from polyptych.published._base import Form, Parts, Repository, Row, Seen, one_saliency_logit
from polyptych.renaming import Rename, under


def of_each_path(rows: Tensor) -> Tensor:
    """Stacked rows of all paths, (paths * d, ...), as (paths, d, ...)."""
    return rows.unflatten(0, (PATHS, -1))


def as_linear(weight: Tensor) -> Tensor:
    """A 1x1 convolution (out, in, 1, 1) as a linear layer (out, in); biases stay."""
    return weight.flatten(1) if weight.ndim == 4 else weight


SCAN = (
    Rename("in_proj.*", "enter.*"),
    Rename("in_proj_cross.*", "cross.*"),
    Rename("conv2d.*", "local.convolve.*"),
    Rename("x_proj_weight", "paths.read"),
    Rename("dt_projs_weight", "paths.v"),
    Rename("dt_projs_bias", "paths.beta"),
    Rename("A_logs", "paths.rate", change=of_each_path),
    Rename("Ds", "paths.skip", change=of_each_path),
    Rename("out_norm.*", "scanned.*"),
    Rename("out_proj.*", "leave.*"),
)


def block(theirs: str, ours: str) -> tuple[Rename, ...]:
    """A self-task block: LayerNorm and a scan."""
    return (Rename(f"{theirs}.norm.*", f"{ours}.norm.*"), *under(f"{theirs}.op.", f"{ours}.", SCAN))


STAGES = (
    Rename("expand_layers.{task}_{s}.expand.*", "stages.{s}.expand.{task}.linear.*"),
    Rename("expand_layers.{task}_{s}.norm.*", "stages.{s}.expand.{task}.norm.*"),
    Rename("concat_layers.{task}_{s}.*", "stages.{s}.reduce.{task}.*", change=as_linear),
)
FIRST = (
    *STAGES,
    *block("block_{i}.{task}_{s}", "stages.{s}.blocks.{i - 1}.tasks.{task}"),
    Rename("block_3.{s}.norm_share.*", "stages.{s}.blocks.2.norm.*"),
    *under("block_3.{s}.op_share.", "stages.{s}.blocks.2.shared.", SCAN),
    Rename("block_3.{s}.norm.{task}.*", "stages.{s}.blocks.2.tasks.{task}.norm.*"),
    *under("block_3.{s}.op.{task}.", "stages.{s}.blocks.2.tasks.{task}.own.", SCAN),
    Rename("block_3.{s}.in_proj.{task}.*", "stages.{s}.blocks.2.tasks.{task}.gate.*"),
    Rename("block_3.{s}.out_proj.{task}.*", "stages.{s}.blocks.2.tasks.{task}.leave.*"),
    Rename("final_expand.{task}.expand.*", "heads.{task}.expand.linear.*"),
    Rename("final_expand.{task}.norm.*", "heads.{task}.expand.norm.*"),
    Rename("final_project.{task}.*", "heads.{task}.predict.*"),
)
PLUS = (
    *STAGES,
    *block("block_stm.{task}_{s}.{i}", "stages.{s}.blocks.{i}.tasks.{task}"),
    Rename("block_ctm.{s}.0.norm_share.*", "stages.{s}.blocks.{own}.norm.*"),
    Rename("block_ctm.{s}.0.conv_share.{n:0|1}.*", "stages.{s}.blocks.{own}.share.{n}.*"),
    Rename("block_ctm.{s}.0.norm.{task}.*", "stages.{s}.blocks.{own}.tasks.{task}.norm.*"),
    *under("block_ctm.{s}.0.op.{task}.", "stages.{s}.blocks.{own}.tasks.{task}.", SCAN),
    Rename("final_expand.{task}.{n:0|1}.*", "heads.{task}.{n}.*"),
    Rename("final_project.{task}.*", "heads.{task}.3.*"),
)


def _scanned(seen: Seen, op: str) -> tuple[int, int]:
    """Scanned channels for every channel of a map, and states of each, from the layers around a scan."""
    inside, width = seen.shape(f"{op}.in_proj.weight")
    return inside // 2 // width, seen.shape(f"{op}.A_logs")[1]


def first(seen: Seen) -> Parts:
    ratio, states = _scanned(seen, "block_1.{task}_0.op")
    decoder = MTMamba.Config(cross="feature", head="dense", ratio=ratio, states=states)
    return Parts(swin_mmseg(seen, "backbone."), Shared.Config(), decoder)


def plus(seen: Seen) -> Parts:
    if seen.has("block_ctm.{s}.1.*"):
        raise InputError(seen.where, "several cross-task blocks at a scale", "one, as published",
                         "use a file with one; others have no counterpart here")
    ratio, states = _scanned(seen, "block_stm.{task}_0.0.op")
    own = seen.count("block_stm.{task}_0.{i}.norm.weight", "i")
    decoder = MTMamba.Config(self_blocks=own, ratio=ratio, states=states,
                             head_width=seen.shape("final_expand.{task}.0.weight")[0])
    return Parts(swin_mmseg(seen, "backbone."), Shared.Config(), decoder, sizes={"own": own})


SWIN = under("backbone.", "encoder.backbone.", SWIN_MMSEG)


class MTMambaRepository(Repository):
    """NYUD is padded to 448x576, PASCAL-Context to 512x512, with the mean color around the image. On Cityscapes, their
    program reads images of 512x1024 and evaluates predictions upsampled to 1024x2048."""

    page = "https://github.com/EnVision-Research/MTMamba"
    license = "no license file; the headers of the losses and the evaluation say CC BY-NC 4.0"
    files = ("OneDrive links in the README: mtmamba and mtmamba_plus, Swin-L, on NYUD, PASCAL-Context and Cityscapes; "
             "the network lies under model, keys are module.*")
    order = ("semseg", "depth", "human_parts", "sal", "normals", "edge")
    recipes = ("nyud_mtmamba", "pascal_mtmamba")
    left_out = ("backbone.stages.{s}.blocks.{b}.attn.w_msa.relative_position_index",)
    forms = (
        Form("MTMamba", signs=("block_3.{s}.op_share.A_logs",), parts=first, finish=one_saliency_logit(".predict"),
             outputs=("final_project.{task}.weight",), rules=(*SWIN, *under("", "decoder.", FIRST))),
        Form("MTMamba++", signs=("block_ctm.{s}.0.conv_share.0.weight",), parts=plus, finish=one_saliency_logit(".3"),
             outputs=("final_project.{task}.weight",), rules=(*SWIN, *under("", "decoder.", PLUS)),
             recipes=("nyud_mtmamba_plus", "pascal_mtmamba_plus")),
    )
    rows = (
        Row("MTMamba, Swin-L", "mIoU 55.82, RMSE 0.5066, normals 18.63, odsF 78.70", "INVPT-N", "OneDrive"),
        Row("MTMamba, Swin-L", "mIoU 81.11, parts 72.62, saliency maxF 84.14, normals 14.14, odsF 78.80", "INVPT-P",
            "OneDrive"),
        Row("MTMamba++, Swin-L", "mIoU 57.01, RMSE 0.4818, normals 18.27, odsF 79.40", "INVPT-N", "OneDrive"),
        Row("MTMamba++, Swin-L", "mIoU 81.94, parts 72.87, saliency maxF 85.56, normals 14.29, odsF 78.60", "INVPT-P",
            "OneDrive"),
    )
