"""MTMamba (Lin et al., ECCV 2024, arXiv 2407.02228) and MTMamba++ (TPAMI 2025, arXiv 2408.15101) on Swin-L.

The networks are the published ones, parameter by parameter, but for the second channel of saliency, which a sigmoid
makes unnecessary. Training differs from the published code as follows: one process accumulates forward passes of two
images, where eight processes have one each; changed colors and zooms are InvPT's, as in their code; a tenth of the
training images is kept for validation (``--dataset.validation 0.0`` trains on all), where they choose the best epoch on
the test images; and the decay rates, skips and step sizes of scans have no weight decay.

The selective scan needs no compiled kernel (:mod:`polyptych.ops.selective_scan`). Multiply-adds count four for every
state of a scan; the published totals count nine.

The published rows are of the protocols INVPT-N and INVPT-P (``polyptych list protocols``), as quoted on pages about the
papers.
"""

from dataclasses import replace

from polyptych.backbones.timm import Timm
from polyptych.balancers.scale_invariant import ScaleInvariant
from polyptych.decoders.mtmamba import MTMamba
from polyptych.optim import Optimizer
from polyptych.recipes.invpt import nyud_invpt as _nyud_invpt
from polyptych.recipes.invpt import pascal_invpt as _pascal_invpt
from polyptych.run import Run

_FIRST = MTMamba.Config(cross="feature", head="dense")


def _trained(run: Run, learning_rate: float, weight_decay: float, accumulate: int) -> Run:
    return replace(
        run,
        backbone=Timm.Config(model="swin_large_patch4_window12_384", pretrained=True, drop_path=0.1, norm_maps=True),
        decoder=MTMamba.Config(),
        batch_size=2,
        accumulate=accumulate,
        optimizer=Optimizer(kind="adamw", learning_rate=learning_rate, weight_decay=weight_decay,
                            decay_everything=True),
    )


def nyud_mtmamba() -> Run:
    """MTMamba on NYUD: segmentation (40 classes), depth, normals and boundaries at 448x576, Swin-L.

    Command: ``polyptych train nyud_mtmamba --dataset.root DIR``. 307,999,137 parameters, of which the backbone has
    195,201,204, and 493 G multiply-adds for one image.

    AdamW at 1e-4 with weight decay 1e-5, a polynomial to zero, 50,000 steps of 8 images, the sum of the logarithms of
    the losses, 20% drop path that falls to 0 in the decoder and 10% in the backbone.

    Published, mIoU / RMSE / mean error of normals / odsF: 55.82 / 0.5066 / 18.63 / 78.70.
    """
    run = _trained(_nyud_invpt(), 1e-4, 1e-5, accumulate=4)
    return replace(run, recipe="nyud_mtmamba", decoder=_FIRST, balancer=ScaleInvariant.Config(), steps=50_000)


def nyud_mtmamba_plus() -> Run:
    """MTMamba++ on NYUD: segmentation (40 classes), depth, normals and boundaries at 448x576, Swin-L.

    Command: ``polyptych train nyud_mtmamba_plus --dataset.root DIR``. 315,021,249 parameters and 480 G multiply-adds
    for one image; with nine operations for every state of a scan 522 G, where the paper says 315 M and 524 G.

    AdamW at 2e-5 with weight decay 1e-6, 40,000 steps of 8 images, loss weights 1, 1, 10 and 50; else as
    ``nyud_mtmamba``.

    Published, mIoU / RMSE / mean error of normals / odsF: 57.01 / 0.4818 / 18.27 / 79.40.
    """
    return replace(_trained(_nyud_invpt(), 2e-5, 1e-6, accumulate=4), recipe="nyud_mtmamba_plus")


def pascal_mtmamba() -> Run:
    """MTMamba on PASCAL-Context: segmentation, parts, saliency, boundaries and normals at 512x512, Swin-L.

    Command: ``polyptych train pascal_mtmamba --dataset.root DIR``. 335,858,133 parameters (335,858,326 with a second
    channel for saliency, as published) and 571 G multiply-adds for one image. Trained as ``nyud_mtmamba``.

    Published, mIoU / parts mIoU / saliency maxF / mean error of normals / odsF: 81.11 / 72.62 / 84.14 / 14.14 / 78.80.
    """
    run = _trained(_pascal_invpt(), 1e-4, 1e-5, accumulate=4)
    return replace(run, recipe="pascal_mtmamba", decoder=_FIRST, balancer=ScaleInvariant.Config(), steps=50_000)


def pascal_mtmamba_plus() -> Run:
    """MTMamba++ on PASCAL-Context: segmentation, parts, saliency, boundaries and normals at 512x512, Swin-L.

    Command: ``polyptych train pascal_mtmamba_plus --dataset.root DIR``. 343,231,509 parameters (343,231,606 with a
    second channel for saliency; the paper says 343 M) and 554 G multiply-adds for one image; with nine operations for
    every state of a scan 607 G, where the paper says 609 G.

    AdamW at 8e-5 with weight decay 1e-6, 40,000 steps of 4 images, the sum of the logarithms of the losses.

    Published, mIoU / parts mIoU / saliency maxF / mean error of normals / odsF: 81.94 / 72.87 / 85.56 / 14.29 / 78.60.
    """
    run = _trained(_pascal_invpt(), 8e-5, 1e-6, accumulate=2)
    return replace(run, recipe="pascal_mtmamba_plus", balancer=ScaleInvariant.Config())
