"""DeMT (Xu, Yang, Zhang, AAAI 2023, arXiv 2301.03461) on Swin-T, trained as its authors train it.

The network has the paper's attention over all positions of all tasks; the published numbers were made with attention at
each pixel and offsets that contain positions, ``--decoder.attention pixel --decoder.offsets published``
(:class:`polyptych.decoders.demt.DeMT` says why).

What cannot be reproduced: the authors' backbones start from weights of UPerNet trained on ADE20K, a segmentation of
scenes, which timm does not have; ours start from ImageNet's, which is a fairer comparison and a lower number. Training
differs in this, too: no crop is drawn again because one class fills it, and a tenth of the training images is kept for
validation (``--dataset.validation 0.0`` trains on all). Several processes share the statistics of BatchNorm with
``--execution.sync-batch-norm``, as theirs do.

The published rows are of the protocols ATRC-N and ATRC-P, read in the README of the authors' code.
"""

from dataclasses import replace

from polyptych.backbones.timm import Timm
from polyptych.balancers.fixed import Fixed
from polyptych.data.transforms import Augment
from polyptych.datasets.nyuv2 import NYUv2
from polyptych.datasets.pascal_context import PASCALContext
from polyptych.decoders.demt import DeMT
from polyptych.encoders.shared import Shared
from polyptych.optim import Optimizer, Schedule
from polyptych.run import Loading, Monitoring, Run
from polyptych.tasks.boundaries import Boundaries
from polyptych.tasks.depth import Depth
from polyptych.tasks.normals import Normals
from polyptych.tasks.parts import PartSegmentation
from polyptych.tasks.saliency import Saliency
from polyptych.tasks.semseg import SemanticSegmentation


def nyud_demt() -> Run:
    """DeMT on NYUD: segmentation (40 classes), depth, normals and boundaries at 425x560, Swin-T.

    Command: ``polyptych train nyud_demt --dataset.root DIR``; other backbones of the paper: ``--backbone.model
    hrnet_w18_small_v2``, ``swin_small_patch4_window7_224``, ``swin_base_patch4_window7_224`` and
    ``swin_large_patch4_window7_224``. 31,883,883 parameters and 149 G multiply-adds for one image; in the published
    form 32,070,259 and 121 G, of which their counter does not see attention layers. As theirs, the network sees 425x560
    without a border and normalizes the backbone's maps (``--backbone.no-norm-maps`` on HRNet).

    SGD at 0.001 with momentum 0.9 and weight decay 5e-4, a polynomial to zero, 40,000 steps of 8 images, loss weights
    1, 1, 10 and 50, zooms of 0.5 to 2, mirrored images, changed colors, 10% drop path.

    Published, mIoU / RMSE / mean error of normals / odsF: Swin-T 46.36 / 0.5871 / 20.60 / 76.9 (32.07 M, 100.7 G);
    Swin-S 51.50 / 0.5474 / 20.02 / 78.1; Swin-B 54.34 / 0.5209 / 19.21 / 78.5; Swin-L 56.94 / 0.5007 / 19.14 / 78.8;
    HRNet-W18 39.18 / 0.5922 / 20.21 / 76.4.
    """
    return Run(
        recipe="nyud_demt",
        dataset=NYUv2.Config(classes=40, crop="gupta"),
        tasks={"semseg": SemanticSegmentation.Config(), "depth": Depth.Config(),
               "normals": Normals.Config(loss="l1_pixel"),
               "boundaries": Boundaries.Config(weight=0.8, benchmark="nyud")},
        backbone=Timm.Config(model="swin_tiny_patch4_window7_224", pretrained=True, drop_path=0.1,
                             norm_maps=True, pad=False),
        encoder=Shared.Config(),
        decoder=DeMT.Config(),
        balancer=Fixed.Config(weights={"semseg": 1.0, "depth": 1.0, "normals": 10.0, "boundaries": 50.0}),
        size=(425, 560),
        steps=40_000,
        batch_size=8,
        augment=Augment(scales=(0.5, 2.0), continuous=True, brightness=0.125, contrast=0.5, saturation=0.5, hue=0.1,
                        color_chance=0.5),
        optimizer=Optimizer(kind="sgd", learning_rate=1e-3, momentum=0.9, weight_decay=5e-4, decay_everything=True),
        schedule=Schedule(kind="polynomial", power=0.9),
        loading=Loading(workers=4),
        monitoring=Monitoring(log_every=50, validate_every=4000, save_every=1000),
    )


def pascal_demt() -> Run:
    """DeMT on PASCAL-Context: segmentation, parts, saliency, boundaries and normals at 512x512, Swin-T.

    Command: ``polyptych train pascal_demt --dataset.root DIR``. Trained as ``nyud_demt``, with loss weights 1, 2, 5, 50
    and 10.

    Published, mIoU / parts mIoU / saliency maxF / mean error of normals / odsF: Swin-T 69.71 / 57.18 / 82.63 / 14.56 /
    71.20 (33.03 M); Swin-S 72.01 / 58.96 / 83.20 / 14.57 / 72.10; Swin-B 75.33 / 63.11 / 83.42 / 14.54 / 73.20;
    HRNet-W18 59.23 / 57.93 / 83.93 / 14.02 / 69.80.
    """
    return replace(
        nyud_demt(),
        recipe="pascal_demt",
        dataset=PASCALContext.Config(),
        tasks={"semseg": SemanticSegmentation.Config(), "parts": PartSegmentation.Config(),
               "saliency": Saliency.Config(), "boundaries": Boundaries.Config(benchmark="pascal"),
               "normals": Normals.Config(loss="l1_pixel")},
        balancer=Fixed.Config(weights={"semseg": 1.0, "parts": 2.0, "saliency": 5.0, "boundaries": 50.0,
                                       "normals": 10.0}),
        size=(512, 512),
    )
