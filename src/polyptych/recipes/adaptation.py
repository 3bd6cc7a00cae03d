"""Pretrained transformers, frozen or adapted: DINOv3 (Simeoni et al. 2025, arXiv 2508.10104) with heads alone, and
MTLoRA (Agiza, Neseem, Reda, CVPR 2024, arXiv 2403.20320) as its authors train it.

MTLoRA trains here as published, except that a tenth of the training images is kept for validation
(``--dataset.validation 0.0`` trains on all), and stochastic depth is drawn by image, as everywhere. The published
numbers are for PASCAL-Context with four tasks, recalled from the paper and not re-read; none are published for NYUD.
"""

from dataclasses import replace

from polyptych.backbones.timm import Timm
from polyptych.balancers.fixed import Fixed
from polyptych.data.transforms import Augment
from polyptych.datasets.nyuv2 import NYUv2
from polyptych.datasets.pascal_context import PASCALContext
from polyptych.decoders.heads import Heads
from polyptych.encoders.mtlora import MTLoRA
from polyptych.encoders.shared import Shared
from polyptych.optim import Optimizer, Schedule
from polyptych.run import Loading, Monitoring, Run
from polyptych.tasks.boundaries import Boundaries
from polyptych.tasks.depth import Depth
from polyptych.tasks.normals import Normals
from polyptych.tasks.parts import PartSegmentation
from polyptych.tasks.saliency import Saliency
from polyptych.tasks.semseg import SemanticSegmentation


def nyud_dinov3_frozen() -> Run:
    """DINOv3 on NYUD, frozen, with DPT heads: segmentation (40 classes), depth, normals and boundaries at 448x576,
    ViT-B.

    Command: ``polyptych train nyud_dinov3_frozen --dataset.root DIR``. The weights of DINOv3 have their own license,
        and timm downloads them from the Hugging Face Hub. Only the heads are trained, so that features can be computed
        once:
    ``--loading.cache FOLDER --loading.feature-views 4`` (four augmented views of each image). For the linear probe with
    which DINOv3 is evaluated: ``--decoder.head probe --decoder.width 0``; its training, data and protocol differ, so
    the numbers are not comparable.

    AdamW at 3e-4 with weight decay 0.01, a warm-up of 500 steps and a cosine, 10,000 steps of 8 images, loss weights 1,
    1, 10 and 50, zooms of 0.75 to 1.5 and mirrored images. These choices are ours.
    """
    return Run(
        recipe="nyud_dinov3_frozen",
        dataset=NYUv2.Config(classes=40),
        tasks={"semseg": SemanticSegmentation.Config(), "depth": Depth.Config(),
               "normals": Normals.Config(), "boundaries": Boundaries.Config(benchmark="nyud")},
        backbone=Timm.Config(model="vit_base_patch16_dinov3.lvd1689m", pretrained=True, vit_pyramid="taps",
                             freeze="all"),
        encoder=Shared.Config(),
        decoder=Heads.Config(head="dpt", width=128),
        balancer=Fixed.Config(weights={"semseg": 1.0, "depth": 1.0, "normals": 10.0, "boundaries": 50.0}),
        size=(448, 576),
        steps=10_000,
        batch_size=8,
        augment=Augment(scales=(0.75, 1.5), continuous=True),
        optimizer=Optimizer(learning_rate=3e-4, weight_decay=0.01),
        schedule=Schedule(warmup=500),
        loading=Loading(workers=4),
        monitoring=Monitoring(log_every=50, validate_every=1000, save_every=500),
    )


def pascal_mtlora() -> Run:
    """MTLoRA on PASCAL-Context: segmentation, parts, saliency and normals at 448x448, Swin-T, rank 64.

    Command: ``polyptych train pascal_mtlora --dataset.root DIR``; other ranks of the paper: ``--encoder.ranks 16`` and
    ``32``; MTLoRA+: ``--encoder.merging low_rank``. 34,262,906 parameters, of which 8,344,634 are trained, as
    published.

    AdamW at 3.125e-5 (5e-4 times 32 / 512) with weight decay 0.05, a warm-up of 20 epochs and a cosine to a hundredth,
    300 epochs of 4998 images at batch 32, gradients of norm 5 at most, 20% drop path, loss weights 1, 2, 5 and 10,
    zooms of 0.75 to 1.25, rotations of up to 20 degrees, mirrored images, weights of ImageNet-1k.

    Published, mIoU / parts mIoU / saliency mIoU / rmse of normals: 67.9 / 59.84 / 65.40 / 16.60, a gain of 2.55% over
    single tasks; rank 32, 67.74 / 59.46 / 64.90 / 16.59; rank 16, 68.19 / 58.99 / 64.48 / 17.03; full fine-tuning,
    67.56 / 60.24 / 65.21 / 16.64.
    """
    return Run(
        recipe="pascal_mtlora",
        dataset=PASCALContext.Config(),
        tasks={"semseg": SemanticSegmentation.Config(), "parts": PartSegmentation.Config(),
               "saliency": Saliency.Config(), "normals": Normals.Config()},
        backbone=Timm.Config(model="swin_tiny_patch4_window7_224", pretrained=True, drop_path=0.2,
                             image_size=(448, 448), swin_windows="published"),
        encoder=MTLoRA.Config(),
        decoder=Heads.Config(width=1080),
        balancer=Fixed.Config(weights={"semseg": 1.0, "parts": 2.0, "saliency": 5.0, "normals": 10.0}),
        size=(448, 448),
        steps=46_860,
        batch_size=32,
        clip=5.0,
        augment=Augment(scales=(0.75, 1.25), continuous=True, rotation=20.0),
        optimizer=Optimizer(learning_rate=3.125e-5, weight_decay=0.05),
        schedule=Schedule(warmup=3124, final=0.01),
        loading=Loading(workers=4),
        monitoring=Monitoring(log_every=50, validate_every=4000, save_every=1000),
    )


def nyud_mtlora() -> Run:
    """MTLoRA on NYUD: segmentation (40 classes), depth, normals and boundaries at 448x448, Swin-T, rank 64.

    Command: ``polyptych train nyud_mtlora --dataset.root DIR``. Trained as ``pascal_mtlora``, 300 epochs of 795 images,
    with loss weights 1, 1, 10 and 50 and zooms of 1, 1.2 and 1.5 without rotation. The authors' code can train it; they
    publish no numbers.
    """
    return replace(
        pascal_mtlora(),
        recipe="nyud_mtlora",
        dataset=NYUv2.Config(classes=40),
        tasks={"semseg": SemanticSegmentation.Config(), "depth": Depth.Config(),
               "normals": Normals.Config(), "boundaries": Boundaries.Config(benchmark="nyud")},
        balancer=Fixed.Config(weights={"semseg": 1.0, "depth": 1.0, "normals": 10.0, "boundaries": 50.0}),
        steps=7_440,
        augment=Augment(scales=(1.0, 1.2, 1.5)),
        schedule=Schedule(warmup=496, final=0.01),
        monitoring=Monitoring(log_every=20, validate_every=1000, save_every=500),
    )
