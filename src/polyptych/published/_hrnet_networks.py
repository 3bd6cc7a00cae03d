"""The networks on HRNet that the repositories of EMA-Net and the survey share, under the same names.

Vandenhende et al., TPAMI 2021, arXiv 2004.13379. The head and the fusion of maps are HRNetV2's (``last_layer``),
initial and final heads are two bottlenecks and a 1x1 convolution.
"""

from __future__ import annotations

from polyptych.decoders.heads import Heads
from polyptych.decoders.mti_net import MTINet
from polyptych.decoders.pad_net import PADNet
from polyptych.encoders.shared import Shared
from polyptych.encoders.single import Single
from polyptych.published._backbones import HRNET, hrnet
from polyptych.published._base import Form, Parts, Seen
from polyptych.renaming import Rename, as_convolution, under

BACKBONE = "encoder.backbone."
MAPS = under("backbone.", BACKBONE, HRNET)
"""A backbone that returns its four maps."""
FUSED_MAPS = (
    *under("backbone.0.", BACKBONE, HRNET),
    Rename("backbone.1.last_layer.{n:0|1}.*", "decoder.fuse.mix.{n}.*"),
)
"""A backbone whose maps are fused before any task reads them."""

INITIAL_HEADS = (
    Rename("initial_task_prediction_heads.layers.{task}.{n:0|1}.*", "decoder.initial.{task}.refine.{n}.*"),
    Rename("initial_task_prediction_heads.conv_out.{task}.*", "decoder.initial.{task}.predict.*"),
)
FINAL_HEADS = (
    Rename("heads.{task}.{n:0|1}.*", "heads.{task}.refine.{n}.*"),
    Rename("heads.{task}.2.*", "heads.{task}.predict.*"),
)
FUSED_HEAD = (
    Rename("last_layer.{n:0|1}.*", "fuse.{n}.*"),
    Rename("last_layer.3.*", "predict.*"),
)
FUSED_HEADS = under("heads.{task}.", "decoder.heads.{task}.", FUSED_HEAD)

SCALES = (
    Rename("scale_{s}.refinement.{task}.{n:0|1}.*", "decoder.initial.refine.{s}.{task}.{n}.*"),
    Rename("scale_{s}.decoders.{task}.*", "decoder.initial.predict.{s}.{task}.*"),
    # Feature propagation from scale s to the next finer one.
    Rename("fpm_scale_{s}.non_linear.*", "decoder.initial.propagate.{s - 1}.mask.*"),
    Rename("fpm_scale_{s}.dimensionality_reduction.*", "decoder.initial.propagate.{s - 1}.join.*"),
    Rename("fpm_scale_{s}.se.{task}.squeeze.{n:0|2}.*", "decoder.initial.propagate.{s - 1}.excite.{task}.{n + 1}.*",
           change=as_convolution),
)
"""MTI-Net before distillation."""


def distillation(theirs: str, ours: str) -> tuple[Rename, ...]:
    """Messages between tasks, each through a gate of the sender: receiver first, then sender."""
    return (Rename(f"{theirs}.self_attention.{{task}}.{{sender}}.attention.0.weight",
                   f"{ours}.gate.{{task}}.{{sender}}.weight"),
            Rename(f"{theirs}.self_attention.{{task}}.{{sender}}.conv.weight",
                   f"{ours}.message.{{task}}.{{sender}}.weight"))


INITIAL_OUTPUTS = "initial_task_prediction_heads.conv_out.{task}.weight"
SCALE_OUTPUTS = "scale_0.decoders.{task}.weight"


def _pad_net(seen: Seen) -> Parts:
    return Parts(hrnet(seen, "backbone.0."), Shared.Config(),
                 PADNet.Config(gate="source", auxiliary_tasks=seen.auxiliary))


def fused_heads(seen: Seen) -> Parts:
    return Parts(hrnet(seen, "backbone."), Shared.Config(), Heads.Config(head="fused"))


def _single_tasks(seen: Seen) -> Parts:
    first = next(iter(seen.tasks))
    return Parts(hrnet(seen, f"backbones.{first}."), Single.Config(), Heads.Config(head="fused"))


def mti_net(auxiliary_weight: float) -> Form:
    """MTI-Net; repositories weight its initial predictions differently."""
    def parts(seen: Seen) -> Parts:
        return Parts(hrnet(seen, "backbone."), Shared.Config(),
                     MTINet.Config(softmax="published", auxiliary_weight=auxiliary_weight,
                                   auxiliary_tasks=seen.auxiliary))

    return Form("MTI-Net", signs=("distillation_scale_0.*",), parts=parts,
                outputs=("heads.{task}.last_layer.3.weight", SCALE_OUTPUTS),
                rules=(*MAPS, *SCALES, *distillation("distillation_scale_{s}", "decoder.distill.{s}"), *FUSED_HEADS))


PAD_NET = Form("PAD-Net", signs=("multi_modal_distillation.*",), parts=_pad_net,
               outputs=("heads.{task}.2.weight", INITIAL_OUTPUTS),
               rules=(*FUSED_MAPS, *INITIAL_HEADS, *distillation("multi_modal_distillation", "decoder.distill"),
                      *under("", "decoder.", FINAL_HEADS)))


def plain_heads(module: str) -> Form:
    """One backbone, and for every task a head of HRNet, which the file calls ``module``."""
    return Form("plain heads", signs=("backbone.stage4.*", f"{module}.{{task}}.last_layer.3.weight"),
                never=("scale_0.*",), parts=fused_heads, outputs=(f"{module}.{{task}}.last_layer.3.weight",),
                rules=(*MAPS, *under(f"{module}.{{task}}.", "decoder.heads.{task}.", FUSED_HEAD)))


SINGLE_TASKS = Form("single tasks", signs=("backbones.{task}.stage4.*", "heads.{task}.last_layer.3.weight"),
                    parts=_single_tasks, outputs=("heads.{task}.last_layer.3.weight",),
                    rules=(*under("backbones.{task}.", "encoder.backbones.{task}.", HRNET), *FUSED_HEADS))
