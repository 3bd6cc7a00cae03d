"""The repository Multi-Task-Transformer: InvPT and TaskPrompter on a vision transformer.

Source: Ye, Xu, ECCV 2022, arXiv 2203.07997; Ye, Xu, ICLR 2023, https://openreview.net/forum?id=-CwPopPJda;
Source: https://github.com/prismformore/Multi-Task-Transformer
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from polyptych.decoders.invpt import InvPT
from polyptych.decoders.task_prompter import TaskPrompter as Heads
from polyptych.encoders.shared import Shared
from polyptych.encoders.task_prompter import TaskPrompter
from polyptych.errors import InputError
from polyptych.published._backbones import VIT, vit
from polyptych.published._base import Form, Parts, Repository, Row, Seen, one_saliency_logit
from polyptych.renaming import Rename, joined, two_channels_as_one, under, without_width

INVPT = (
    Rename("multi_task_decoder.preliminary_decoder.{task}.{n:0|1}.conv.weight", "preliminary.{task}.{n}.0.weight"),
    Rename("multi_task_decoder.preliminary_decoder.{task}.{n:0|1}.bn1.*", "preliminary.{task}.{n}.1.*"),
    Rename("multi_task_decoder.intermediate_head.{task}.*", "initial.{task}.*"),
    Rename("multi_task_decoder.invpt.mix_proj.{task}.0.*", "mix.{task}.*"),
    Rename("multi_task_decoder.invpt.mt_proj.{task}.{n:0|1}.*", "join.{task}.{n}.*"),
    Rename("multi_task_decoder.invpt.norm_mts.{s}.*", "stages.{s}.norm.*"),
    Rename("multi_task_decoder.invpt.redu_chan.{s:1|2}.{i}.*", "stages.{s}.out.{tasks[i]}.*"),
    Rename("multi_task_decoder.invpt.invpt_stages.{s:1|2}.patch_embed.{i}.proj.{n:1|2|4|5}.*",
           "stages.{s}.enlarge.{tasks[i]}.{n - 1}.*"),
    Rename("multi_task_decoder.invpt.invpt_stages.{s}.blocks.0.attn.conv_proj_q.{i}.conv.weight",
           "stages.{s}.attention.reduce.{tasks[i]}.0.weight"),
    Rename("multi_task_decoder.invpt.invpt_stages.{s}.blocks.0.attn.conv_proj_q.{i}.bn.*",
           "stages.{s}.attention.reduce.{tasks[i]}.1.*"),
    Rename("multi_task_decoder.invpt.invpt_stages.{s}.blocks.0.attn.proj_q.*", "stages.{s}.attention.query.*"),
    Rename("multi_task_decoder.invpt.invpt_stages.{s}.blocks.0.attn.proj_k.*", "stages.{s}.attention.key.*"),
    Rename("multi_task_decoder.invpt.invpt_stages.{s}.blocks.0.attn.proj_v.*", "stages.{s}.attention.value.*"),
    Rename("multi_task_decoder.invpt.invpt_stages.{s}.blocks.0.attn.proj.*", "stages.{s}.attention.join.*"),
    Rename("multi_task_decoder.invpt.invpt_stages.{s:1|2}.blocks.0.attn.fuse_attn.*", "stages.{s}.attention.fuse.*"),
    Rename("multi_task_decoder.invpt.invpt_stages.{s}.blocks.0.norm{n:1|2}.*", "stages.{s}.norm{n}.*"),
    Rename("multi_task_decoder.invpt.invpt_stages.{s}.blocks.0.mlp.*", "stages.{s}.mlp.*"),
    Rename("multi_task_decoder.scale_embed.{n:0|1}.*", "stages.{2 - n}.encoder.layers.0.*"),
    Rename("heads.{task}.linear_pred.*", "heads.{task}.*"),
    # Modules that the program has but never calls.
    Rename("multi_task_decoder.invpt.redu_chan.0.{i}.*", "unused.out.{tasks[i]}.*"),
    Rename("multi_task_decoder.invpt.invpt_stages.0.blocks.0.attn.fuse_attn.*", "unused.fuse.*"),
    Rename("multi_task_decoder.invpt.norm_mt.*", "unused.norm.*"),
    Rename("multi_task_decoder.scale_embed.2.*", "unused.encoder.layers.0.*"),
)

TASK_PROMPTER = (
    Rename("backbone.task_prompts", "encoder.prompted.prompts"),
    Rename("backbone.blocks.{n}.attn.token_trans.*", "encoder.prompted.channels.{n // quarter}.{n % quarter}.ask.*"),
    Rename("backbone.blocks.{n}.attn.token_trans1.*", "encoder.prompted.channels.{n // quarter}.{n % quarter}.tell.*"),
    # Two convolutions of the two halves of the channels are one in groups here: places first, then channels.
    Rename("backbone.fea_decode_spa.{s}.{task}.0.*", "decoder.extract.{task}.{s}.0.*", gather=joined),
    Rename("backbone.fea_decode_chan.{s}.{task}.0.*", "decoder.extract.{task}.{s}.0.*", gather=joined),
    Rename("backbone.fea_fuse.{s}.{task}.{n:0|1|2|4}.*", "decoder.extract.{task}.{s}.{n + 1}.*"),
    Rename("backbone.ctr_attn_conv.{s}.{task}.{n:0|2}.*", "decoder.weigh.{task}.{s}.{n}.*", change=without_width),
    Rename("heads.{task}.mt_proj.{n:0|1}.*", "decoder.heads.{task}.{n}.*"),
    Rename("heads.{task}.linear_pred.*", "decoder.heads.{task}.3.*"),
    *under("backbone.", "encoder.backbone.", VIT),
)
CHANNEL_HEADS = {(768, 768): 16, (300, 350): 1, (780, 1024): 16}
"""Of the published configurations, by embed_dim and final_embed_dim; weights have the same shapes for any number."""


def invpt(seen: Seen) -> Parts:
    backbone, size, quarter = vit(seen, "backbone.")
    first = next(iter(seen.values("multi_task_decoder.intermediate_head.{task}.weight", "task")))
    decoder = InvPT.Config(width=seen.shape(f"multi_task_decoder.intermediate_head.{first}.weight")[1],
                           heads=seen.shape("multi_task_decoder.invpt.invpt_stages.1.blocks.0.attn.fuse_attn.weight")[0],
                           scale="published", encoder_features="published", drop_path=0.0, unused_weights=True)
    return Parts(backbone, Shared.Config(), decoder, size, {"quarter": quarter})


def task_prompter(seen: Seen) -> Parts:
    backbone, size, quarter = vit(seen, "backbone.")
    inner = seen.shape("backbone.fea_decode_spa.0.{task}.0.weight")[0]
    width = seen.shape("heads.{task}.mt_proj.0.weight")[0]
    heads = seen.assume("chan_nheads", CHANNEL_HEADS.get((inner, width)), "the number of heads of channel attention")
    windows = round(heads**0.5)
    if windows * windows != heads or windows < 1:
        raise InputError("--assume chan_nheads", f"{heads:g}", "a square: 1, 4, 16, ...",
                         "take the number of the run that wrote the file")
    encoder = TaskPrompter.Config(size=size, windows=windows, channel="published", scores="raw",
                                  stochastic_depth="separate", initial="published", prefix_tokens=False)
    decoder = Heads.Config(inner=inner, width=width, reweight=seen.has("backbone.ctr_attn_conv.*"))
    return Parts(backbone, encoder, decoder, size, {"quarter": quarter})


def invpt_with_one_logit(tensors: dict[str, Tensor], seen: Seen) -> None:
    """Saliency as one logit. Its preliminary prediction p = W f + b is also an input of later layers, mix [f; p]: the
    effect of p there is added to the columns of f, so that the one remaining column of p has no effect."""
    if "saliency" not in seen.tasks.values() or tensors["decoder.heads.saliency.weight"].shape[0] != 2:
        return
    weight, bias = tensors["decoder.initial.saliency.weight"], tensors["decoder.initial.saliency.bias"]
    mix, width = tensors["decoder.mix.saliency.weight"][:, :, 0, 0], weight.shape[1]
    from_features = mix[:, :width] + mix[:, width:] @ weight[:, :, 0, 0]
    tensors["decoder.mix.saliency.bias"] = tensors["decoder.mix.saliency.bias"] + mix[:, width:] @ bias
    tensors["decoder.mix.saliency.weight"] = F.pad(from_features, (0, 1))[:, :, None, None]
    two_channels_as_one(tensors, "decoder.initial.saliency")
    two_channels_as_one(tensors, "decoder.heads.saliency")


class MultiTaskTransformer(Repository):
    """Images are normalized like ImageNet's, even for backbones for which timm states other values. NYUD is padded to
    448x576, PASCAL-Context to 512x512, with the mean color around the image."""

    page = "https://github.com/prismformore/Multi-Task-Transformer"
    license = "MIT, but the headers of the networks' files say CC BY-NC 4.0"
    files = ("links to Google Drive and OneDrive in the README: InvPT and TaskPrompter, ViT-L on NYUD and "
             "PASCAL-Context, TaskPrompter ViT-B on PASCAL-Context; the network lies under model, keys are module.*. "
             "TaskPrompter's network for Cityscapes-3D (3D detection) has no counterpart here")
    order = ("semseg", "depth", "human_parts", "sal", "normals", "edge")
    recipes = ("nyud_invpt", "pascal_invpt")
    forms = (
        Form("InvPT", signs=("multi_task_decoder.invpt.*", "backbone.patch_embed.proj.weight", "backbone.pos_embed"),
             parts=invpt, finish=invpt_with_one_logit,
             outputs=("heads.{task}.linear_pred.weight",),
             rules=(*under("backbone.", "encoder.backbone.", VIT), *under("", "decoder.", INVPT))),
        Form("TaskPrompter", signs=("backbone.task_prompts", "backbone.blocks.0.attn.token_trans.weight"),
             never=("backbone.layers.*",), parts=task_prompter, finish=one_saliency_logit(".3"),
             outputs=("heads.{task}.linear_pred.weight",), rules=TASK_PROMPTER,
             recipes=("nyud_task_prompter", "pascal_task_prompter"),
             invented=("encoder.backbone.stages.0.model.cls_token",)),  # its table of positions has a row for it
    )
    rows = (
        Row("InvPT, ViT-L", "mIoU 53.65, RMSE 0.5083, normals 18.68, odsF 77.80", "INVPT-N", "Google Drive, OneDrive"),
        Row("InvPT, ViT-L", "mIoU 79.91, parts 68.54, saliency maxF 84.38, normals 13.90, odsF 72.90", "INVPT-P",
            "Google Drive, OneDrive"),
        Row("TaskPrompter, ViT-L", "mIoU 55.90, RMSE 0.5062, normals 18.58, odsF 77.70", "INVPT-N", "OneDrive"),
        Row("TaskPrompter, ViT-L", "mIoU 80.79, parts 68.81, saliency maxF 84.26, normals 13.58, odsF 73.80", "INVPT-P",
            "OneDrive"),
        Row("TaskPrompter, ViT-B", "mIoU 78.63, parts 66.93, saliency maxF 84.77, normals 13.42, odsF 73.60", "INVPT-P",
            "OneDrive"),
    )
