"""EMA-Net's repository: single tasks, plain heads, PAD-, PAP-, MTI-Net and both forms of EMA-Net, on HRNet.

Source: Sinodinos, Armanfard, WACV 2025, arXiv 2401.11124, https://github.com/Armanfard-Lab/EMA-Net
"""

from __future__ import annotations

from torch import Tensor

from polyptych.decoders.ema_net import EMANet
from polyptych.decoders.ema_net_multi_scale import EMANetMultiScale
from polyptych.decoders.pap_net import PAPNet
from polyptych.encoders.shared import Shared
from polyptych.published._backbones import hrnet
from polyptych.published._base import UNIT_RANGE, Form, Parts, Repository, Seen, Size
from polyptych.published._hrnet_networks import (
    FINAL_HEADS,
    FUSED_MAPS,
    INITIAL_HEADS,
    INITIAL_OUTPUTS,
    MAPS,
    PAD_NET,
    SCALE_OUTPUTS,
    SCALES,
    SINGLE_TASKS,
    mti_net,
    plain_heads,
)
from polyptych.renaming import Rename, stacked, under

STRIDE = 4
GRIDS = {72 * 96: (72, 96), 32 * 64: (32, 64)}
"""Positions at 288x384 (NYUv2) and 128x256 (Cityscapes)."""


def cross_task_attention(module: str, filters: str) -> tuple[Rename, ...]:
    """CTAL, which compares positions and mixes tasks, and the heads after it."""
    return (
        Rename(f"{module}.conv_in.{{task}}.*", "decoder.refine.enter.{task}.*"),
        Rename(f"{module}.spatial_att.projection.{{task}}.*", "decoder.refine.affinity.values.{tasks.index(task)}.*"),
        Rename(f"{module}.spatial_att.{filters}.*", "decoder.refine.affinity.filters.*"),
        Rename(f"{module}.conv_out.{{task}}.{{n:0|1|3}}.*", "decoder.refine.enlarge.{task}.{n}.*"),
        *under("", "decoder.refine.", FINAL_HEADS),
    )


def on_the_grid(tensors: dict[str, Tensor], seen: Seen) -> None:
    """CTAL's filters by position: a grouped convolution over the N = h w positions of the training images, (N, tasks,
    3, 3), there; maps of 9 taps for each task, (1, 9 tasks, h, w), here."""
    height, width = training_size(seen)
    grid = (-(-height // STRIDE), -(-width // STRIDE))
    weight, bias = (f"decoder.refine.affinity.filters.{end}" for end in ("weight", "bias"))
    tensors[weight] = tensors[weight].flatten(1).t().unflatten(1, grid)[None]
    tensors[bias] = tensors[bias].reshape(1, 1, *grid)


def training_size(seen: Seen) -> Size:
    positions = seen.shape("{module:affinity_learning_module|ctal}.spatial_att.{name:fusion|task_fusion}.bias")[0]
    return seen.grid(positions, STRIDE, GRIDS)


def ema_net(seen: Seen) -> Parts:
    size = training_size(seen)
    return Parts(hrnet(seen, "backbone.0."), Shared.Config(),
                 EMANet.Config(fusion="shared", size=size, gamma=gamma(seen)), size)


def multi_scale(seen: Seen) -> Parts:
    size = training_size(seen)
    return Parts(hrnet(seen, "backbone."), Shared.Config(),
                 EMANetMultiScale.Config(fusion="shared", softmax="published", size=size, gamma=gamma(seen)), size)


def gamma(seen: Seen) -> float:
    return seen.assume("gamma", 0.05, "the share of what comes from other positions and tasks")


def pap_net(seen: Seen) -> Parts:
    steps = seen.assume("num_iters", 1, "the number of diffusion steps")
    beta = seen.assume("beta", 0.05, "the weight of diffused features")
    return Parts(hrnet(seen, "backbone.0."), Shared.Config(),
                 PAPNet.Config(normalization="published", steps=int(steps), strength=beta))


class EMANetRepository(Repository):
    """Images are not normalized. Tasks of Cityscapes are segmentation and inverse depth, which it calls depth."""

    page = "https://github.com/Armanfard-Lab/EMA-Net"
    license = "no license file; headers of its files say CC BY-NC 4.0"
    files = "none published; its training writes ROOT/MODEL/DATA_NAME_EPOCH.pth, a bare state dict under model.*"
    order = ("semseg", "depth", "normals")
    prefix = "model."
    normalization = UNIT_RANGE
    recipes = ("nyuv2_ema_net", "cityscapes_ema_net")
    left_out = ("criterion.*",)
    forms = (
        Form("EMA-Net", signs=("affinity_learning_module.spatial_att.fusion.weight",), parts=ema_net,
             outputs=("heads.{task}.2.weight", INITIAL_OUTPUTS), finish=on_the_grid,
             rules=(*FUSED_MAPS, *INITIAL_HEADS, *cross_task_attention("affinity_learning_module", "fusion"))),
        Form("EMA-Net, multi-scale", signs=("ctal.spatial_att.task_fusion.weight",), parts=multi_scale,
             outputs=("heads.{task}.2.weight", SCALE_OUTPUTS), finish=on_the_grid,
             rules=(*MAPS, *SCALES, *cross_task_attention("ctal", "task_fusion"),
                    Rename("scale_fusion.{task}.last_layer.{n:0|1}.*", "decoder.fuse.{task}.mix.{n}.*"))),
        Form("PAP-Net", signs=("diffusion_module.weights.*",), parts=pap_net,
             outputs=("heads.{task}.2.weight", INITIAL_OUTPUTS),
             rules=(*FUSED_MAPS, *INITIAL_HEADS, *under("", "decoder.", FINAL_HEADS),
                    Rename("affinity_learning_module.conv.{task}.*", "decoder.project.{task}.*"),
                    Rename("diffusion_module.weights.{task}", "decoder.mixture", gather=stacked))),
        PAD_NET,
        mti_net(auxiliary_weight=0.25),
        plain_heads("heads"),
        SINGLE_TASKS,
    )
