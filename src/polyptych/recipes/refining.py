"""Decoders in which tasks refine each other's predictions, on NYUv2, all trained as EMA-Net's authors train them.

That makes them comparable with each other and with ``nyuv2_ema_net`` (arXiv 2401.11124, its code): HRNet-W18-small-v2
with ImageNet weights, 288x384, 13 classes, depth and normals with weight 1 each, Adam at 1e-4 with weight decay 1e-4 in
the gradient, a cosine to zero, 200 epochs of 795 images at batch 8, mirrored images. Ours differs: the learning rate
changes at every step, not every epoch; a tenth of the training images is kept for validation; images are normalized as
the ImageNet weights expect.

That code's own results could not be read, so the published rows quoted below are of other protocols, named by their
ids (SURV-N: 40 classes, 480x640, segmentation mIoU / depth RMSE over all pixels; ATRC-N: 40 classes, 425x560, also mean
error of normals and odsF of boundaries). They are quoted from memory, not re-read, and not comparable with a run of
these recipes. Costs are multiply-adds for one image at 288x384, measured on these networks; plain heads take 5.1 G.
"""

from dataclasses import replace

from polyptych.decoders._base import Decoder
from polyptych.decoders.jtrl import JTRL
from polyptych.decoders.mti_net import MTINet
from polyptych.decoders.pad_net import PADNet
from polyptych.decoders.pap_net import PAPNet
from polyptych.recipes.ema_net import nyuv2_ema_net
from polyptych.run import Run


def nyuv2_pad_net() -> Run:
    """PAD-Net (Xu et al., CVPR 2018) on NYUv2: segmentation (13 classes), depth and normals, HRNet-W18-small-v2.

    Command: ``polyptych train nyuv2_pad_net --dataset.root DIR``. 10,307,968 parameters, 48 G multiply-adds; with
    ``--decoder.gate source``, the form of the published code, 12,077,440 and 60 G.

    Published, SURV-N, HRNet-W18, two tasks: 32.80 / 0.660 (single tasks 33.18 / 0.667), in MTI-Net's paper. ATRC-N,
    HRNet-W18: 36.61 / 0.6270 / 20.85 / 76.38, in DeMT's; ATRC's own recollected row differs (36.72 / 0.6264).
    """
    return _as_ema_net("nyuv2_pad_net", PADNet.Config())


def nyuv2_pap_net() -> Run:
    """PAP-Net (Zhang et al., CVPR 2019) on NYUv2: segmentation (13 classes), depth and normals, HRNet-W18-small-v2.

    Command: ``polyptych train nyuv2_pap_net --dataset.root DIR``. 4,780,425 parameters, 12 G multiply-adds (46.6 G in
    the published code, which stores the affinities); ``--decoder.normalization published`` divides as that code does.

    Published, ATRC-N, HRNet-W18: 36.72 / 0.6178 / 20.82 / 76.42, in DeMT's paper. The original (ResNet-50, a protocol
    of its own, two tasks): 50.4 / 0.530.
    """
    return _as_ema_net("nyuv2_pap_net", PAPNet.Config())


def nyuv2_jtrl() -> Run:
    """JTRL (Zhang et al., ECCV 2018) on NYUv2: depth, then segmentation (13 classes) and normals, HRNet-W18-small-v2.

    Command: ``polyptych train nyuv2_jtrl --dataset.root DIR``. 13,252,404 parameters, 23 G multiply-adds. Tasks take
    turns in the order of ``--tasks``; depth is first, as in the paper.

    Published (the original: ResNet-50, a protocol of its own, two tasks): 46.4 mIoU / 0.501 RMSE. There is no public
    code, and no row with this backbone.
    """
    return _as_ema_net("nyuv2_jtrl", JTRL.Config(), first="depth")


def nyuv2_mti_net() -> Run:
    """MTI-Net (Vandenhende et al., ECCV 2020) on NYUv2: segmentation (13 classes), depth, normals, HRNet-W18-small-v2.

    Command: ``polyptych train nyuv2_mti_net --dataset.root DIR``. 12,638,901 parameters, 8 G multiply-adds. The
    initial predictions of each scale weigh 1/4, as in EMA-Net's code; with ``--decoder.softmax published`` so is the
    mask.

    Published, SURV-N, HRNet-W18, two tasks: 35.12 / 0.620, and 37.49 / 0.607 with boundaries and normals as auxiliary
    tasks (single tasks 33.18 / 0.667), in its paper.
    """
    return _as_ema_net("nyuv2_mti_net", MTINet.Config(auxiliary_weight=0.25))


def _as_ema_net(recipe: str, decoder: Decoder.Config, first: str = "semseg") -> Run:
    run = nyuv2_ema_net()
    return replace(run, recipe=recipe, decoder=decoder, tasks={first: run.tasks[first], **run.tasks})
